//! What an instance heard that it should not, counted by kind and sender. Pure.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use super::packet::Rejection;

/// Something that should not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Oddity {
    /// An advert that was not believed.
    Rejected(Rejection),
    /// An advert with other virtual addresses than are configured here.
    OtherAddresses,
    /// Adverts of another master, again and again, while this one is master.
    SecondMaster,
    /// Adverts of version 3 at another interval than is configured here. It is followed.
    OtherInterval,
    /// A checksum of version 3 over IPv4 that is right in another form than is configured here.
    OtherChecksum,
}

impl Oddity {
    /// Whether it concerns an interface and not one of the instances there: no instance could be named for
    /// the packet, so it is counted at every one.
    pub fn is_of_interface(self) -> bool {
        match self {
            Oddity::OtherAddresses
            | Oddity::SecondMaster
            | Oddity::OtherInterval
            | Oddity::OtherChecksum => false,
            Oddity::Rejected(rejection) => match rejection {
                Rejection::Truncated
                | Rejection::Oversized
                | Rejection::NotVrrp
                | Rejection::WrongType
                | Rejection::WrongChecksum
                | Rejection::WrongVrid
                | Rejection::NoAddress => true,
                Rejection::WrongTtl
                | Rejection::WrongVersion
                | Rejection::WrongGroup
                | Rejection::WrongAuthType
                | Rejection::WrongPassword
                | Rejection::WrongIcv
                | Rejection::Replayed
                | Rejection::Unsigned
                | Rejection::MalformedTrailer
                | Rejection::UnknownKey
                | Rejection::WrongHmac
                | Rejection::Stale
                | Rejection::UnknownPeer
                | Rejection::WrongInterval => false,
            },
        }
    }

    /// What an operator reads of it, without the sender.
    pub fn advice(self) -> &'static str {
        match self {
            Oddity::OtherAddresses => {
                "advertises other virtual addresses than are configured here; make the lists equal"
            }
            Oddity::SecondMaster => {
                "goes on as master too: it does not hear this one, or does not believe it"
            }
            Oddity::OtherInterval => {
                "has another advert_interval: backups wait for as long as the master's says; make them equal"
            }
            Oddity::OtherChecksum => {
                "computes checksums in another form than `checksum` here; it may not believe this one's"
            }
            Oddity::Rejected(rejection) => match rejection {
                Rejection::Truncated | Rejection::Oversized | Rejection::NoAddress => {
                    "sends adverts of a wrong length"
                }
                Rejection::NotVrrp | Rejection::WrongType => "sends what is no advert",
                Rejection::WrongTtl => {
                    "sends adverts with a TTL that is not allowed: they were routed, or forged"
                }
                Rejection::WrongVersion => "speaks another version of VRRP",
                Rejection::WrongChecksum => "sends adverts with a wrong checksum",
                Rejection::WrongVrid => "speaks for a virtual router that nobody here knows",
                Rejection::WrongGroup => {
                    "sends to another group, or to a group where peers are spoken to one by one"
                }
                Rejection::WrongAuthType => "authenticates in another way",
                Rejection::WrongPassword => "has another password",
                Rejection::WrongIcv => "has another key (AH)",
                Rejection::Replayed => "sends adverts that were heard before",
                Rejection::Unsigned => "does not sign its adverts",
                Rejection::MalformedTrailer => "signs its adverts by another scheme",
                Rejection::UnknownKey => "signs its adverts with a key that is not configured here",
                Rejection::WrongHmac => "has another key under the same id, or forges",
                Rejection::Stale => {
                    "sends adverts of another time: compare the clocks, or they are replayed"
                }
                Rejection::UnknownPeer => "is not among `unicast_peers`",
                Rejection::WrongInterval => "has another advert_interval",
            },
        }
    }
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Oddity::Rejected(rejection) => rejection.fmt(f),
            Oddity::OtherAddresses => f.write_str("other_addresses"),
            Oddity::SecondMaster => f.write_str("second_master"),
            Oddity::OtherInterval => f.write_str("other_interval"),
            Oddity::OtherChecksum => f.write_str("other_checksum"),
        }
    }
}

/// Pairs of kind and sender that are counted apart. Senders can be forged; what more of them send is
/// counted without its sender, which needs one place for each kind besides.
const PLACES: usize = 64;

/// Counts since the instance runs.
#[derive(Clone, Debug, Default)]
pub struct Oddities {
    counts: BTreeMap<(Oddity, Option<IpAddr>), u64>,
}

impl Oddities {
    /// Counts one.
    pub fn count(&mut self, oddity: Oddity, sender: Option<IpAddr>) {
        let key = (oddity, sender);
        let has_place = self.counts.contains_key(&key) || self.counts.len() < PLACES;
        let key = if has_place { key } else { (oddity, None) };
        *self.counts.entry(key).or_default() += 1;
    }

    /// All counts, together with those of others.
    pub fn and(&self, others: Option<&Self>) -> Vec<(Oddity, Option<IpAddr>, u64)> {
        let mut all = self.counts.clone();
        for (key, count) in others.iter().flat_map(|others| &others.counts) {
            *all.entry(*key).or_default() += count;
        }
        let list = all.into_iter();
        list.map(|((oddity, sender), count)| (oddity, sender, count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_senders_do_not_fill_the_memory() {
        let mut oddities = Oddities::default();
        let oddity = Oddity::Rejected(Rejection::WrongPassword);
        for sender in 0..1_000_u32 {
            oddities.count(oddity, Some(IpAddr::V4(sender.into())));
        }
        oddities.count(Oddity::SecondMaster, Some(IpAddr::V4(1.into())));
        let all = oddities.and(None);
        assert_eq!(all.len(), PLACES + 2);
        assert_eq!(all.iter().map(|(.., count)| count).sum::<u64>(), 1_001);
        let rest = all
            .iter()
            .find(|(o, sender, _)| *o == oddity && sender.is_none());
        assert_eq!(rest.map(|(.., count)| *count), Some(1_000 - PLACES as u64));
    }
}
