//! Real processes under names of their own, with and without the kernel's word.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command},
};

use super::*;
use crate::{
    model::{ProcessPattern, Restart},
    track::findings,
};

/// A program that sleeps, under a name that nothing else has.
struct Sleeper {
    program: PathBuf,
    children: Vec<Child>,
}

impl Sleeper {
    fn new(name: &str) -> Self {
        // The kernel keeps 15 bytes of a name.
        let name = format!("{name}{}", std::process::id());
        assert!(name.len() <= 15);
        let program = std::env::temp_dir().join(name);
        fs::copy("/bin/sleep", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            program,
            children: Vec::new(),
        }
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap().to_string_lossy().into()
    }

    fn begin(&mut self) {
        self.children
            .push(Command::new(&self.program).arg("1000").spawn().unwrap());
    }

    /// Kills one, and leaves it a zombie.
    fn kill_one(&mut self) {
        let child = self.children.last_mut().unwrap();
        child.kill().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_file(&self.program);
    }
}

fn process(name: String) -> TrackProcess {
    TrackProcess {
        name: "it".into(),
        pattern: ProcessPattern::Name(name),
        quorum: 1,
        quorum_max: None,
        interval: Duration::from_millis(100),
        fork_delay: Duration::ZERO,
        terminate_delay: Duration::ZERO,
        restart: None,
    }
}

fn account() -> Account {
    Account::of("root").unwrap()
}

/// Waits for a condition, and says how long that took.
async fn told(inbox: &mut mpsc::Receiver<Finding>, wanted: Condition) -> Duration {
    let began = Instant::now();
    loop {
        let finding = timeout(Duration::from_secs(5), inbox.recv()).await;
        let finding = finding.expect("in time").unwrap();
        if finding.condition == wanted {
            return began.elapsed();
        }
    }
}

async fn deaths_and_births(name: &str, asks_kernel: bool, births_within: Duration) {
    let mut sleeper = Sleeper::new(name);
    let (findings, mut inbox) = findings();
    let processes = Processes::start(findings, asks_kernel);
    let wanted = vec![(process(sleeper.name()), account())];
    sleeper.begin();
    let first = processes.configure(wanted.clone()).await;
    assert_eq!(first[0].condition, Condition::Up);
    assert_eq!(first[0].detail.as_deref(), Some("1 runs"));
    let (mut deaths, mut births) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        sleeper.kill_one();
        deaths.push(told(&mut inbox, Condition::Down).await);
        sleeper.begin();
        births.push(told(&mut inbox, Condition::Up).await);
    }
    for times in [&mut deaths, &mut births] {
        times.sort();
    }
    // The median: this machine may be busy for a moment.
    assert!(deaths[2] < Duration::from_millis(50), "{deaths:?}");
    assert!(births[2] < births_within, "{births:?}");
    // The same again disturbs nothing.
    let again = processes.configure(wanted).await;
    assert_eq!(again[0].condition, Condition::Up);
    assert!(processes.configure(Vec::new()).await.is_empty());
}

#[tokio::test]
async fn the_kernel_tells_of_deaths_and_births() {
    if let Err(error) = Connector::connect().await {
        eprintln!("skipped: the kernel does not tell of processes here: {error}");
        return;
    }
    deaths_and_births("lbdk", true, Duration::from_millis(50)).await;
}

#[tokio::test]
async fn without_the_kernel_deaths_are_told_at_once_and_births_after_the_interval() {
    deaths_and_births("lbdp", false, Duration::from_millis(250)).await;
}

#[tokio::test]
async fn a_process_is_started_again() {
    let sleeper = Sleeper::new("lbdr");
    let (findings, mut inbox) = findings();
    let processes = Processes::start(findings, false);
    let program = sleeper.program.display();
    let command = format!("{program} 1.2 >&- 2>&- & exit 0");
    let restart = Restart {
        command: ["sh", "-c", &command].map(str::to_owned).to_vec(),
        user: None,
        interval: Duration::from_secs(1),
        tries: 2,
        timeout: Duration::from_secs(5),
    };
    let process = TrackProcess {
        restart: Some(restart),
        ..process(sleeper.name())
    };
    let first = processes.configure(vec![(process, account())]).await;
    assert_eq!(first[0].condition, Condition::Down);
    assert!(told(&mut inbox, Condition::Up).await < Duration::from_secs(1));
    // It ends after a second, is started again, ends, and is left alone.
    told(&mut inbox, Condition::Down).await;
    assert!(told(&mut inbox, Condition::Up).await < Duration::from_secs(1));
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let finding = timeout(end - Instant::now(), inbox.recv()).await;
        let detail = finding.expect("in time").unwrap().detail.unwrap();
        if detail == "none runs; try 2 of 2 to restart: succeeded; no more tries" {
            return;
        }
    }
}
