//! Servers of our own, for clients that must bear everything.

use std::{
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use nix::sched::{CloneFlags, setns};

use crate::Node;

/// TCP servers of our own on a node, each a function that is given every connection. They end with
/// this value.
pub struct Servers {
    node: Node,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// None yet.
    pub fn new(node: &Node) -> Self {
        Self {
            node: node.clone(),
            ended: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// Serves on a port. Every connection has a thread, and a second at most for one read or write.
    pub fn tcp(
        &mut self,
        port: u16,
        serve: impl Fn(&mut TcpStream) + Clone + Send + 'static,
    ) -> Result<()> {
        let listener = self
            .node
            .within(move || TcpListener::bind(("0.0.0.0", port)))??;
        listener.set_nonblocking(true)?;
        let ended = self.ended.clone();
        self.threads.push(thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let second = Some(Duration::from_secs(1));
                let ready = stream.set_nonblocking(false).is_ok()
                    && stream.set_read_timeout(second).is_ok()
                    && stream.set_write_timeout(second).is_ok();
                if ready {
                    let serve = serve.clone();
                    thread::spawn(move || serve(&mut stream));
                }
            }
        }));
        Ok(())
    }

    /// Runs `work` on a thread of its own inside the node until the flag is set.
    pub fn spawn(&mut self, work: impl FnOnce(Arc<AtomicBool>) + Send + 'static) -> Result<()> {
        let namespace = self.node.open()?;
        let ended = self.ended.clone();
        self.threads.push(thread::spawn(move || {
            if setns(namespace, CloneFlags::CLONE_NEWNET).is_ok() {
                work(ended);
            }
        }));
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
