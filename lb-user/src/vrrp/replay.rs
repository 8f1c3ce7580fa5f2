//! Which adverts with a trailer were heard before. Pure: it is handed the time.
//!
//! Of each sender the latest stamp is kept, and only later ones are believed. Nothing is kept over a restart:
//! then the window alone, if there is one, stands between a captured advert and belief.

use std::{net::IpAddr, time::Duration};

use super::packet::Stamp;

/// Senders remembered at once. Only holders of a key get in here, an instance speaks to 64 peers at most,
/// and of a group only those speak that want to be master. Beyond that, the one that was silent longest is
/// forgotten.
const SENDERS: usize = 64;

/// The latest stamp of each sender of one instance, the one heard last at the end.
#[derive(Debug, Default)]
pub struct Marks {
    marks: Vec<(IpAddr, Stamp)>,
}

impl Marks {
    /// Whether a stamp, whose HMAC is right, is new; then it is noted. With a window, a mark that lies
    /// outside of it is no obstacle: what it would hold off, the window holds off, and a sender whose clock
    /// was set back is believed again.
    pub fn accept(
        &mut self,
        source: IpAddr,
        stamp: Stamp,
        window: Option<Duration>,
        wall: Duration,
    ) -> bool {
        let known = self.marks.iter().position(|(sender, _)| *sender == source);
        if let Some(index) = known {
            let mark = self.marks[index].1;
            let counts = window.is_none_or(|window| mark.is_within(window, wall));
            if counts && !stamp.is_after(mark) {
                return false;
            }
            self.marks.remove(index);
        } else if self.marks.len() >= SENDERS {
            self.marks.remove(0);
        }
        self.marks.push((source, stamp));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Option<Duration> = Some(Duration::from_secs(5));

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn router(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn only_later_stamps_of_a_sender_are_believed() {
        let mut marks = Marks::default();
        let (first, second) = (Stamp::of(at(100)), Stamp::of(at(101)));
        assert!(marks.accept(router(1), first, WINDOW, at(101)));
        assert!(!marks.accept(router(1), first, WINDOW, at(101)), "again");
        assert!(marks.accept(router(1), second, WINDOW, at(101)));
        assert!(!marks.accept(router(1), first, WINDOW, at(101)), "earlier");
        assert!(marks.accept(router(2), first, WINDOW, at(101)), "another");
    }

    #[test]
    fn a_mark_outside_the_window_counts_only_without_one() {
        let ahead = Stamp::of(at(3_700));
        for (window, believed) in [(WINDOW, true), (None, false)] {
            let mut marks = Marks::default();
            assert!(marks.accept(router(1), ahead, window, at(3_700)));
            let after_correction = Stamp::of(at(100));
            assert_eq!(
                marks.accept(router(1), after_correction, window, at(100)),
                believed
            );
        }
    }

    #[test]
    fn the_longest_silent_sender_is_forgotten() {
        let mut marks = Marks::default();
        for last in 0..SENDERS as u8 {
            assert!(marks.accept(router(last), Stamp::of(at(100)), WINDOW, at(100)));
        }
        // The first one speaks again; the second is now the longest silent.
        assert!(marks.accept(router(0), Stamp::of(at(101)), WINDOW, at(101)));
        assert!(marks.accept(router(200), Stamp::of(at(101)), WINDOW, at(101)));
        assert_eq!(marks.marks.len(), SENDERS);
        assert!(!marks.accept(router(0), Stamp::of(at(101)), WINDOW, at(101)));
        assert!(marks.accept(router(1), Stamp::of(at(100)), WINDOW, at(101)));
    }
}
