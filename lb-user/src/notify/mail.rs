//! Mail: a task of its own that sends one letter after the other, tries again for a while, and counts.
//! Nobody waits for it.

mod smtp;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use lettre::{
    Address,
    transport::smtp::client::{Certificate, TlsParameters},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use self::smtp::{AttemptError, Letter, Receipt};
use super::{backlog::Backlog, unix};
use crate::{
    api::proto::MailStatus,
    model::{Mail, MailTls},
};

/// Letters that wait for the server. A director writes a few in a bad hour; the oldest are dropped and
/// counted.
const QUEUE: usize = 256;

/// How long a letter is tried.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// After the first failure in a row; doubled after each further one.
    first_pause: Duration,
    /// The longest pause: a server that returns gets what waits soon.
    longest_pause: Duration,
    /// Attempts of one letter.
    attempts: u32,
    /// Age of a letter that is not worth another attempt.
    age: Duration,
}

/// About four minutes of pauses for one letter, and an hour for those behind it.
const PATIENCE: Patience = Patience {
    first_pause: Duration::from_secs(1),
    longest_pause: Duration::from_secs(60),
    attempts: 10,
    age: Duration::from_secs(3600),
};

/// Sends mails.
pub struct Mailer {
    letters: Arc<Backlog<Letter>>,
    setup: watch::Sender<Arc<Mail>>,
    status: Arc<Mutex<MailStatus>>,
    numbers: AtomicU64,
    task: JoinHandle<()>,
}

/// Whether a text has certificates in PEM, and none that is broken.
pub fn has_certificates(text: &str) -> bool {
    let is_some = text.contains("-----BEGIN CERTIFICATE-----");
    is_some && Certificate::from_pem(text.as_bytes()).is_ok()
}

impl Mailer {
    /// Nothing to send yet.
    pub fn new(mail: &Mail) -> Self {
        Self::with_patience(mail, PATIENCE)
    }

    fn with_patience(mail: &Mail, patience: Patience) -> Self {
        let letters = Arc::new(Backlog::new(QUEUE));
        let status = Arc::new(Mutex::new(MailStatus::default()));
        let (setup, changes) = watch::channel(Arc::new(mail.clone()));
        let worker = Worker {
            letters: letters.clone(),
            setup: changes,
            status: status.clone(),
            patience,
            tls: None,
            failures: 0,
        };
        Self {
            letters,
            setup,
            status,
            numbers: AtomicU64::new(1),
            task: tokio::spawn(worker.run()),
        }
    }

    /// Another way, also for what waits, which is tried at once.
    pub fn configure(&self, mail: &Mail) {
        self.setup.send_if_modified(|old| {
            let changed = **old != *mail;
            if changed {
                *old = Arc::new(mail.clone());
            }
            changed
        });
    }

    /// Queues a mail.
    pub fn push(&self, subject: String, body: String) {
        let letter = Letter {
            subject,
            body,
            at: SystemTime::now(),
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
        };
        if !self.letters.push(letter) && self.letters.dropped() == 1 {
            // Told once; the status has the number.
            tracing::error!("too many mails wait; the oldest are dropped");
        }
    }

    /// What became of the mails.
    pub fn status(&self) -> MailStatus {
        let mut status = lock(&self.status).clone();
        let mail = self.setup.borrow();
        status.server = match mail.server.contains(':') {
            true => format!("[{}]:{}", mail.server, mail.port),
            false => format!("{}:{}", mail.server, mail.port),
        };
        // The status counts the one in the worker's hand.
        status.waiting += self.letters.waiting();
        status.dropped = self.letters.dropped();
        status
    }

    /// Sends what is left until `end`, unless the server does not work anyway.
    pub async fn finish(mut self, end: Instant) {
        self.letters.close();
        let works = !lock(&self.status).failing;
        if works && timeout_at(end, &mut self.task).await.is_ok() {
            return;
        }
        self.task.abort();
        let left = self.status().waiting;
        if left > 0 {
            tracing::warn!(left, "mails are not sent: stopping");
        }
    }
}

impl Drop for Mailer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Worker {
    letters: Arc<Backlog<Letter>>,
    setup: watch::Receiver<Arc<Mail>>,
    status: Arc<Mutex<MailStatus>>,
    patience: Patience,
    /// For this setup.
    tls: Option<(Arc<Mail>, TlsParameters)>,
    /// Failed attempts in a row, whichever letter they were for.
    failures: u32,
}

impl Worker {
    async fn run(mut self) {
        while let Some(letter) = self.letters.next().await {
            lock(&self.status).waiting = 1;
            self.send(&letter).await;
            lock(&self.status).waiting = 0;
        }
    }

    /// Tries until the letter is delivered or given up.
    async fn send(&mut self, letter: &Letter) {
        // Who is still to get it; `None` is everybody.
        let mut left: Option<Vec<Address>> = None;
        let mut delivered = false;
        for attempt in 1..=self.patience.attempts {
            let mail = self.setup.borrow_and_update().clone();
            let to = left.clone().unwrap_or_else(|| {
                mail.to
                    .iter()
                    .map(|mailbox| mailbox.email.clone())
                    .collect()
            });
            let again = match self.attempt(&mail, letter, &to).await {
                Ok(receipt) => {
                    delivered |= receipt.accepted > 0;
                    let later = self.note_receipt(receipt, attempt == 1);
                    if later.is_empty() {
                        break;
                    }
                    left = Some(later);
                    true
                }
                Err(error) => {
                    self.note_error(&mail, &error);
                    !error.is_permanent()
                }
            };
            let age = letter.at.elapsed().unwrap_or_default();
            if !again || attempt == self.patience.attempts || age > self.patience.age {
                break;
            }
            self.pause().await;
        }
        let mut status = lock(&self.status);
        if delivered {
            status.sent += 1;
            status.last_sent_at = Some(unix(SystemTime::now()));
            tracing::debug!(subject = letter.subject, "mail sent");
        } else {
            status.failed += 1;
            tracing::error!(
                subject = letter.subject,
                error = status.last_error,
                "mail given up"
            );
        }
    }

    async fn attempt(
        &mut self,
        mail: &Arc<Mail>,
        letter: &Letter,
        to: &[Address],
    ) -> Result<Receipt, AttemptError> {
        let tls = match mail.tls {
            MailTls::None => None,
            MailTls::StartTls | MailTls::Tls => Some(self.tls(mail).await?),
        };
        smtp::attempt(mail, tls, letter, to).await
    }

    async fn tls(&mut self, mail: &Arc<Mail>) -> Result<TlsParameters, AttemptError> {
        if let Some((of, tls)) = &self.tls
            && of == mail
        {
            return Ok(tls.clone());
        }
        let wanted = mail.clone();
        let tls = tokio::task::spawn_blocking(move || smtp::tls(&wanted))
            .await
            .map_err(|error| AttemptError::Tls(error.to_string()))??;
        self.tls = Some((mail.clone(), tls.clone()));
        Ok(tls)
    }

    /// Counts what the server took, and returns who is to be tried again.
    fn note_receipt(&mut self, receipt: Receipt, first: bool) -> Vec<Address> {
        self.failures = if receipt.later.is_empty() {
            0
        } else {
            self.failures + 1
        };
        let mut status = lock(&self.status);
        status.failing = !receipt.refused.is_empty() || !receipt.later.is_empty();
        status.failed_attempts += u64::from(status.failing);
        status.refused_recipients += receipt.refused.len() as u64;
        for (address, words) in receipt.refused.iter().chain(&receipt.later) {
            if first {
                tracing::warn!(recipient = %address, words, "the mail server refuses a recipient");
            }
            status.last_error = Some(format!("{address} is refused: {words}"));
            status.last_error_at = Some(unix(SystemTime::now()));
        }
        receipt
            .later
            .into_iter()
            .map(|(address, _)| address)
            .collect()
    }

    fn note_error(&mut self, mail: &Mail, error: &AttemptError) {
        self.failures = self.failures.saturating_add(1);
        let text = format!("{} port {}: {error}", mail.server, mail.port);
        let mut status = lock(&self.status);
        // A server that is away for an hour is told of once.
        if !status.failing {
            tracing::warn!(error = text, "cannot send mail; trying again");
        }
        status.failing = true;
        status.failed_attempts += 1;
        status.last_error = Some(text);
        status.last_error_at = Some(unix(SystemTime::now()));
    }

    /// Waits before the next attempt, until another way is configured at most.
    async fn pause(&mut self) {
        let doublings = self.failures.saturating_sub(1).min(16);
        let pause = self.patience.first_pause * 2_u32.pow(doublings);
        tokio::select! {
            () = sleep(pause.min(self.patience.longest_pause)) => {}
            Ok(()) = self.setup.changed() => self.failures = 0,
        }
    }
}

fn lock(status: &Mutex<MailStatus>) -> MutexGuard<'_, MailStatus> {
    // Every change is complete before anything could panic.
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
