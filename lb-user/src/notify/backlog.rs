//! A bounded queue between somebody who must not wait and somebody who may be slow. When it is full the
//! oldest entry goes, because the latest news says how things are now.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The queue. One taker.
pub struct Backlog<T> {
    inner: Mutex<Inner<T>>,
    changed: Notify,
    most: usize,
}

struct Inner<T> {
    items: VecDeque<T>,
    dropped: u64,
    closed: bool,
}

impl<T> Backlog<T> {
    /// Holds at most `most`.
    pub fn new(most: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                items: VecDeque::new(),
                dropped: 0,
                closed: false,
            }),
            changed: Notify::new(),
            most,
        }
    }

    /// Adds to the end. Whether nothing had to go for it.
    pub fn push(&self, item: T) -> bool {
        let mut inner = self.lock();
        let fits = inner.items.len() < self.most;
        if !fits {
            inner.items.pop_front();
            inner.dropped += 1;
        }
        inner.items.push_back(item);
        drop(inner);
        self.changed.notify_one();
        fits
    }

    /// Takes from the front when there is something; `None` after [`Backlog::close`] when nothing is
    /// left.
    pub async fn next(&self) -> Option<T> {
        loop {
            {
                let mut inner = self.lock();
                if let Some(item) = inner.items.pop_front() {
                    return Some(item);
                }
                if inner.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Nothing more will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// How many wait.
    pub fn waiting(&self) -> u64 {
        self.lock().items.len() as u64
    }

    /// How many found no room so far.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // Every change is complete before anything could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_goes_and_is_counted() {
        let backlog = Backlog::new(3);
        let fits: Vec<bool> = (1..=5).map(|n| backlog.push(n)).collect();
        assert_eq!(fits, [true, true, true, false, false]);
        assert_eq!((backlog.waiting(), backlog.dropped()), (3, 2));
        backlog.close();
        let mut left = Vec::new();
        while let Some(n) = backlog.next().await {
            left.push(n);
        }
        assert_eq!(left, [3, 4, 5]);
    }

    #[tokio::test]
    async fn a_taker_that_waits_is_woken() {
        let backlog = std::sync::Arc::new(Backlog::new(3));
        let taker = tokio::spawn({
            let backlog = backlog.clone();
            async move { (backlog.next().await, backlog.next().await) }
        });
        tokio::task::yield_now().await;
        backlog.push("one");
        backlog.close();
        assert_eq!(taker.await.unwrap(), (Some("one"), None));
    }
}
