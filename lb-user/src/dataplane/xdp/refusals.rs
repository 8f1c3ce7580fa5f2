//! Interfaces that the program could not be attached to, and why. Pure.

/// One entry for each interface that is there: what its last attempt was refused for.
#[derive(Debug, Default)]
pub struct Refusals(Vec<(String, String)>);

impl Refusals {
    /// Forgets interfaces that are gone.
    pub fn keep(&mut self, is_present: impl Fn(&str) -> bool) {
        self.0.retain(|(interface, _)| is_present(interface));
    }

    /// An attempt was refused. Says whether that is worth telling: attempts come every second.
    pub fn note(&mut self, interface: &str, why: String) -> bool {
        match self.0.iter_mut().find(|(name, _)| name == interface) {
            Some((_, known)) if *known == why => false,
            Some((_, known)) => {
                *known = why;
                true
            }
            None => {
                self.0.push((interface.to_owned(), why));
                true
            }
        }
    }

    /// The program runs on an interface.
    pub fn clear(&mut self, interface: &str) {
        self.0.retain(|(name, _)| name != interface);
    }

    /// The program is to run nowhere, or runs everywhere.
    pub fn clear_all(&mut self) {
        self.0.clear();
    }

    /// Why the one that was refused first was refused the last time.
    pub fn first(&self) -> Option<&str> {
        self.0.first().map(|(_, why)| why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_refusal_of_those_that_are_there() {
        let mut refusals = Refusals::default();
        assert!(refusals.note("lan0", "busy".to_owned()));
        assert!(!refusals.note("lan0", "busy".to_owned()));
        assert!(refusals.note("lan1", "no native XDP".to_owned()));
        assert_eq!(refusals.first(), Some("busy"));
        assert!(refusals.note("lan0", "no memory".to_owned()));
        assert_eq!(refusals.first(), Some("no memory"));
        // One goes, and would be told of again if it came back.
        refusals.keep(|name| name == "lan1");
        assert_eq!(refusals.first(), Some("no native XDP"));
        assert!(refusals.note("lan0", "no memory".to_owned()));
        refusals.clear("lan1");
        assert_eq!(refusals.first(), Some("no memory"));
        refusals.clear_all();
        assert_eq!(refusals.first(), None);
    }
}
