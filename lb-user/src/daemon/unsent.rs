//! Announcements that could not be sent, and are sent again until they can. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::succession::Succession;

/// By instance. No more than there are virtual addresses.
#[derive(Debug, Default)]
pub struct Unsent {
    instances: BTreeMap<String, Failure>,
}

#[derive(Debug)]
struct Failure {
    /// The last one.
    error: String,
    addresses: BTreeSet<IpAddr>,
}

impl Unsent {
    /// Remembers one that failed. Says whether that is news: no address of the instance failed before, or for
    /// another reason.
    pub fn failed(&mut self, instance: &str, address: IpAddr, error: &str) -> bool {
        let Some(failure) = self.instances.get_mut(instance) else {
            let failure = Failure {
                error: error.to_owned(),
                addresses: [address].into(),
            };
            self.instances.insert(instance.to_owned(), failure);
            return true;
        };
        failure.addresses.insert(address);
        let is_news = failure.error != error;
        error.clone_into(&mut failure.error);
        is_news
    }

    /// It has been announced.
    pub fn succeeded(&mut self, instance: &str, address: IpAddr) {
        if let Some(failure) = self.instances.get_mut(instance) {
            failure.addresses.remove(&address);
            if failure.addresses.is_empty() {
                self.instances.remove(instance);
            }
        }
    }

    /// The instance announces nothing any more.
    pub fn forget(&mut self, instance: &str) {
        self.instances.remove(instance);
    }

    /// Follows instances that are called otherwise now.
    pub fn rename(&mut self, names: &Succession) {
        let before = std::mem::take(&mut self.instances).into_iter();
        self.instances = before
            .map(|(name, failure)| (names.rename(name), failure))
            .collect();
    }

    /// What is to be sent again.
    pub fn all(&self) -> Vec<(String, IpAddr)> {
        let of = |(name, failure): (&String, &Failure)| {
            let addresses = failure.addresses.iter();
            addresses
                .map(|address| (name.clone(), *address))
                .collect::<Vec<_>>()
        };
        self.instances.iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 15, 50));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 15, 51));

    #[test]
    fn an_error_is_news_once() {
        let mut unsent = Unsent::default();
        assert!(unsent.failed("a", ONE, "the network is down"));
        assert!(!unsent.failed("a", ONE, "the network is down"));
        assert!(!unsent.failed("a", OTHER, "the network is down"));
        assert!(unsent.failed("b", ONE, "the network is down"));
        assert!(unsent.failed("a", ONE, "no such device"));
        assert!(!unsent.failed("a", OTHER, "no such device"));
        unsent.succeeded("a", ONE);
        assert!(!unsent.failed("a", ONE, "no such device"));
        unsent.succeeded("a", ONE);
        unsent.succeeded("a", OTHER);
        assert!(
            unsent.failed("a", ONE, "no such device"),
            "it went well before"
        );
        unsent.forget("a");
        assert!(unsent.failed("a", ONE, "no such device"), "it was released");
    }

    #[test]
    fn only_what_failed_is_sent_again_under_the_present_name() {
        let instance = |name: &str| {
            let text = format!(
                "[[vrrp]]\nname = \"{name}\"\ninterface = \"eth0\"\nvirtual_router_id = 20\n\
                 addresses = [\"10.1.15.50/16\", \"10.1.15.51/16\"]\n"
            );
            config::parse("lbd.toml", &text, "host").unwrap().instances
        };
        let mut unsent = Unsent::default();
        unsent.failed("a", ONE, "the network is down");
        unsent.failed("a", OTHER, "the network is down");
        unsent.succeeded("a", ONE);
        unsent.rename(&Succession::of(&instance("a"), &instance("b")));
        assert_eq!(unsent.all(), [("b".to_owned(), OTHER)]);
        unsent.succeeded("b", OTHER);
        assert_eq!(unsent.all(), []);
    }
}
