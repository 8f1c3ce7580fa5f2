//! Against a kernel that refuses when it is told to.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use super::*;
use crate::model::{
    IpPrefix, Prefix,
    network::{Action, AddressOptions, MAIN_TABLE, Route},
};

/// What is there, each with whether it bears our mark, and what the kernel does not do at present.
#[derive(Default)]
struct Fake {
    there: RefCell<Vec<(Key, bool)>>,
    adds_nothing: Cell<bool>,
    removes_nothing: Cell<bool>,
    /// Requests are carried out, and their answers lost.
    is_silent: Rc<Cell<bool>>,
    removed: RefCell<Vec<Key>>,
    /// Requests and questions.
    asked: Cell<u32>,
}

impl Fake {
    fn has(&self, key: &Key) -> Option<usize> {
        self.there.borrow().iter().position(|(k, _)| k == key)
    }

    fn answer<T>(&self, refuses: bool, answer: T) -> Result<T, NetlinkError> {
        self.asked.set(self.asked.get() + 1);
        let what = "do it".to_owned();
        match (self.is_silent.get(), refuses) {
            (true, _) => Err(NetlinkError::NoAnswer {
                what,
                after: Duration::from_secs(2),
            }),
            (false, true) => Err(NetlinkError::Request {
                what,
                source: rtnetlink::Error::RequestFailed,
            }),
            (false, false) => Ok(answer),
        }
    }
}

impl Kernel for Fake {
    fn listen(&self) -> Answered {
        let is_silent = Rc::clone(&self.is_silent);
        Box::new(move || !is_silent.get())
    }

    async fn add(&self, item: &Item, _: &Interfaces) -> Option<Result<Placing, NetlinkError>> {
        let key = Key::of(item);
        let refuses = self.adds_nothing.get();
        let is_there = self.has(&key).is_some();
        if !refuses && !is_there {
            self.there.borrow_mut().push((key, true));
        }
        let placing = if is_there {
            Placing::Present
        } else {
            Placing::Done
        };
        Some(self.answer(refuses, placing))
    }

    async fn renew(&self, _: &Item, _: &Interfaces) -> Result<(), NetlinkError> {
        Ok(())
    }

    async fn remove(&self, key: &Key, _: &Interfaces) -> Result<(), NetlinkError> {
        let refuses = self.removes_nothing.get();
        self.removed.borrow_mut().push(key.clone());
        if !refuses {
            self.there.borrow_mut().retain(|(k, _)| k != key);
        }
        self.answer(refuses, ())
    }

    async fn is_marked(&self, key: &Key, _: &Interfaces) -> Result<bool, NetlinkError> {
        let marked = self.has(key).is_some_and(|at| self.there.borrow()[at].1);
        self.answer(false, marked)
    }
}

fn address(last: u8) -> Item {
    Item::Address(PlacedAddress {
        prefix: Prefix {
            address: [10, 1, 15, last].into(),
            length: 16,
        },
        device: "eth0".into(),
        options: AddressOptions::default(),
    })
}

fn route() -> Item {
    Item::Route(Route {
        to: IpPrefix {
            address: [203, 0, 113, 0].into(),
            length: 24,
        },
        action: Action::Blackhole,
        via: None,
        device: None,
        source: None,
        metric: 5,
        table: MAIN_TABLE,
        scope: None,
        onlink: false,
        mtu: None,
    })
}

fn owner(name: &str) -> Owner {
    Owner::Instance(name.to_owned())
}

struct World {
    placed: Placed<Fake>,
    interfaces: Interfaces,
}

impl World {
    fn new() -> Self {
        Self {
            placed: Placed::new(Fake::default()),
            interfaces: Interfaces::default(),
        }
    }

    fn kernel(&self) -> &Fake {
        &self.placed.kernel
    }

    async fn put(&mut self, name: &str, items: &[Item]) {
        let wanted = vec![(owner(name), items.to_vec())];
        self.placed.put(wanted, &self.interfaces).await;
    }

    async fn take(&mut self, name: &str) {
        self.placed.take(&owner(name), &self.interfaces).await;
    }

    async fn retry(&mut self) -> Vec<String> {
        let again = self.placed.retry(&self.interfaces).await;
        again.into_iter().collect()
    }

    fn problems(&self) -> usize {
        self.placed.problems().len()
    }

    fn there(&self) -> usize {
        self.kernel().there.borrow().len()
    }

    /// How many requests the kernel got since this was asked last.
    fn asked(&self) -> u32 {
        self.kernel().asked.take()
    }
}

#[tokio::test]
async fn what_cannot_be_added_is_tried_again() {
    let mut world = World::new();
    world.kernel().adds_nothing.set(true);
    world.put("VI_1", &[address(50), route()]).await;
    assert_eq!((world.there(), world.problems()), (0, 2));
    assert_eq!(world.retry().await, Vec::<String>::new());
    assert_eq!((world.there(), world.problems()), (0, 2));
    world.kernel().adds_nothing.set(false);
    assert_eq!(
        world.retry().await,
        ["VI_1"],
        "its address is to be announced"
    );
    assert_eq!((world.there(), world.problems()), (2, 0));
    world.take("VI_1").await;
    assert_eq!(world.there(), 0);
}

#[tokio::test]
async fn what_cannot_be_removed_is_tried_again() {
    let mut world = World::new();
    world.put("VI_1", &[address(50), route()]).await;
    world.kernel().removes_nothing.set(true);
    world.take("VI_1").await;
    world.retry().await;
    assert_eq!((world.there(), world.problems()), (2, 2));
    world.kernel().removes_nothing.set(false);
    world.retry().await;
    assert_eq!((world.there(), world.problems()), (0, 0));
}

/// One that becomes master again wants what has not gone yet: it is still ours.
#[tokio::test]
async fn what_is_stuck_and_wanted_again_is_ours() {
    let mut world = World::new();
    world.put("VI_1", &[address(50)]).await;
    // As on a kernel without marks.
    world.kernel().there.borrow_mut()[0].1 = false;
    world.kernel().removes_nothing.set(true);
    world.take("VI_1").await;
    world.put("VI_1", &[address(50)]).await;
    world.retry().await;
    assert_eq!((world.there(), world.problems()), (1, 0));
    world.kernel().removes_nothing.set(false);
    world.take("VI_1").await;
    assert_eq!(world.there(), 0);
}

/// A request that was carried out although its answer was lost.
#[tokio::test]
async fn what_was_added_without_an_answer_is_ours() {
    let mut world = World::new();
    world.kernel().is_silent.set(true);
    world.put("VI_1", &[address(50)]).await;
    assert_eq!((world.there(), world.problems()), (1, 1));
    world.kernel().is_silent.set(false);
    world.retry().await;
    assert_eq!(world.problems(), 0);
    world.take("VI_1").await;
    assert_eq!(world.there(), 0);
    // And one that is not wanted any more before that is known.
    world.kernel().is_silent.set(true);
    world.put("VI_1", &[address(50)]).await;
    world.kernel().is_silent.set(false);
    world.take("VI_1").await;
    assert_eq!(world.there(), 0);
}

/// Nothing is known of it when it is not wanted any more: the kernel does not tell whose it is either.
#[tokio::test]
async fn what_may_be_ours_is_taken_away_when_the_kernel_answers_again() {
    let mut world = World::new();
    world.kernel().is_silent.set(true);
    world.put("VI_1", &[address(50)]).await;
    world.take("VI_1").await;
    assert_eq!((world.there(), world.problems()), (1, 1));
    world.retry().await;
    assert_eq!((world.there(), world.problems()), (1, 1));
    world.kernel().is_silent.set(false);
    world.retry().await;
    assert_eq!((world.there(), world.problems()), (0, 0));

    let foreign = vec![(Key::of(&address(50)), false)];
    *world.kernel().there.borrow_mut() = foreign;
    world.kernel().is_silent.set(true);
    world.put("VI_1", &[address(50)]).await;
    world.take("VI_1").await;
    world.kernel().is_silent.set(false);
    world.retry().await;
    assert_eq!((world.there(), world.problems()), (1, 0), "theirs stays");
}

/// Each request without an answer keeps the daemon waiting: one at a time is enough to know.
#[tokio::test]
async fn a_kernel_that_does_not_answer_is_asked_once_at_a_time() {
    let mut world = World::new();
    let items = [address(50), address(51), route()];
    world.kernel().is_silent.set(true);
    world.put("VI_1", &items).await;
    assert_eq!((world.asked(), world.problems()), (1, 3));
    world.retry().await;
    assert_eq!((world.asked(), world.problems()), (1, 3));
    world.kernel().is_silent.set(false);
    assert_eq!(world.retry().await, ["VI_1"]);
    assert_eq!((world.there(), world.problems()), (3, 0));

    world.asked();
    world.kernel().is_silent.set(true);
    world.kernel().removes_nothing.set(true);
    let again = world.placed.restore(None, &world.interfaces).await;
    assert_eq!((world.asked(), again.len(), world.problems()), (1, 0, 3));
    world.take("VI_1").await;
    assert_eq!((world.asked(), world.problems()), (0, 3));
    world.put("VI_2", &[address(60)]).await;
    world.take("VI_2").await;
    assert_eq!((world.asked(), world.problems()), (0, 4));
    world.retry().await;
    assert_eq!((world.asked(), world.problems()), (1, 4));
    world.kernel().is_silent.set(false);
    world.kernel().removes_nothing.set(false);
    world.retry().await;
    assert_eq!((world.there(), world.problems()), (0, 0));
}

/// At the end there is no other time.
#[tokio::test]
async fn at_the_end_everything_is_asked_for() {
    let mut world = World::new();
    world
        .put("VI_1", &[address(50), address(51), route()])
        .await;
    world.put("VI_2", &[address(60), address(61)]).await;
    world.kernel().is_silent.set(true);
    world.take("VI_1").await;
    world.placed.take_everything(&world.interfaces).await;
    assert_eq!(world.there(), 0);
}

#[tokio::test]
async fn what_is_theirs_stays_whatever_fails() {
    let mut world = World::new();
    let foreign = vec![(Key::of(&address(50)), false)];
    *world.kernel().there.borrow_mut() = foreign;
    world.kernel().adds_nothing.set(true);
    world.put("VI_1", &[address(50)]).await;
    world.take("VI_1").await;
    world.kernel().adds_nothing.set(false);
    world.put("VI_1", &[address(50)]).await;
    world.retry().await;
    world.take("VI_1").await;
    assert_eq!((world.there(), world.problems()), (1, 0));
}

/// An address that one gives to another is there all the time.
#[tokio::test]
async fn what_moves_is_not_removed() {
    let mut world = World::new();
    world.put("a", &[address(50), address(51)]).await;
    world.put("b", &[address(60)]).await;
    let wanted = vec![
        (owner("a"), vec![address(60)]),
        (owner("b"), vec![address(50)]),
    ];
    world.placed.put(wanted, &world.interfaces).await;
    assert_eq!(*world.kernel().removed.borrow(), [Key::of(&address(51))]);
    world.take("a").await;
    world.take("b").await;
    assert_eq!(world.there(), 0);
}
