//! Identifiers that flows hold: given out once, kept while their owner lives, and rested for as
//! long as a flow may still hold them before somebody else gets them. Pure.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};

/// Identifiers 1 to `limit` for keys.
#[derive(Debug)]
pub struct Ids<K> {
    live: HashMap<K, u16>,
    /// In the order of retirement.
    resting: VecDeque<(Duration, K, u16)>,
    free: VecDeque<u16>,
    rest: Duration,
}

/// All identifiers are taken or resting.
#[derive(Debug, PartialEq, Eq)]
pub struct Exhausted;

impl<K: Copy + Eq + Hash> Ids<K> {
    /// Identifiers 1 to `limit`, which rest for `rest` after use.
    pub fn new(limit: u16, rest: Duration) -> Self {
        Self {
            live: HashMap::new(),
            resting: VecDeque::new(),
            free: (1..=limit).collect(),
            rest,
        }
    }

    /// Takes over an assignment of an earlier run.
    pub fn restore(&mut self, key: K, id: u16) {
        if let Some(index) = self.free.iter().position(|free| *free == id) {
            self.free.remove(index);
            self.live.insert(key, id);
        }
    }

    /// The key's identifier; a resting one of the same key wakes up, and its flows with it. The
    /// flag says whether the identifier is fresh.
    pub fn assign(&mut self, key: K, now: Duration) -> Result<(u16, bool), Exhausted> {
        if let Some(id) = self.live.get(&key) {
            return Ok((*id, false));
        }
        if let Some(index) = self
            .resting
            .iter()
            .position(|(_, resting, _)| *resting == key)
            && let Some((_, _, id)) = self.resting.remove(index)
        {
            self.live.insert(key, id);
            return Ok((id, false));
        }
        while self
            .resting
            .front()
            .is_some_and(|(since, ..)| now >= *since + self.rest)
        {
            self.free
                .extend(self.resting.pop_front().map(|(.., id)| id));
        }
        let id = self.free.pop_front().ok_or(Exhausted)?;
        self.live.insert(key, id);
        Ok((id, true))
    }

    /// Retires every key that `keep` does not want. Returns them.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool, now: Duration) -> Vec<(K, u16)> {
        let gone: Vec<(K, u16)> = self
            .live
            .iter()
            .filter(|(key, _)| !keep(key))
            .map(|(key, id)| (*key, *id))
            .collect();
        for (key, id) in &gone {
            self.live.remove(key);
            self.resting.push_back((now, *key, *id));
        }
        gone
    }

    /// Lengthens the rest; those resting already rest longer too.
    pub fn rest_at_least(&mut self, rest: Duration) {
        self.rest = self.rest.max(rest);
    }

    /// Identifiers that are not free.
    pub fn ever_given(&self) -> impl Iterator<Item = u16> + '_ {
        let resting = self.resting.iter().map(|(.., id)| *id);
        self.live.values().copied().chain(resting)
    }

    /// The key's identifier, if it lives.
    pub fn get(&self, key: &K) -> Option<u16> {
        self.live.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(900);

    #[test]
    fn an_identifier_rests_before_somebody_else_gets_it() {
        let mut ids = Ids::new(2, REST);
        assert_eq!(ids.assign("a", Duration::ZERO), Ok((1, true)));
        assert_eq!(ids.assign("a", Duration::ZERO), Ok((1, false)));
        assert_eq!(ids.assign("b", Duration::ZERO), Ok((2, true)));
        assert_eq!(
            ids.retain(|key| *key != "a", Duration::from_secs(10)),
            [("a", 1)]
        );
        assert_eq!(ids.assign("c", Duration::from_secs(909)), Err(Exhausted));
        assert_eq!(ids.assign("c", Duration::from_secs(910)), Ok((1, true)));
    }

    #[test]
    fn the_same_key_gets_its_resting_identifier_back() {
        let mut ids = Ids::new(5, REST);
        ids.assign("a", Duration::ZERO).unwrap();
        ids.retain(|_| false, Duration::ZERO);
        assert_eq!(ids.get(&"a"), None);
        assert_eq!(ids.assign("a", Duration::from_secs(1)), Ok((1, false)));
    }

    #[test]
    fn restored_identifiers_are_not_given_out() {
        let mut ids = Ids::new(3, REST);
        ids.restore("old", 1);
        assert_eq!(ids.assign("new", Duration::ZERO), Ok((2, true)));
        assert_eq!(ids.assign("old", Duration::ZERO), Ok((1, false)));
    }
}
