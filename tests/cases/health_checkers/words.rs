//! Commands, agents and files: what says itself how a real server is.

use std::time::Duration;

use lab::{Process, wait};

use crate::checked::{
    Checked,
    Expect::{self, Down, Up},
    TIMING,
};

use super::{run, wait_for_port};

#[test]
fn commands() {
    let mut checked = Checked::prepare().unwrap();
    let marker = checked.path("marker");
    let slow = format!(
        "/bin/sh -c 'sleep 1000 & echo $! > {0}; chmod 666 {0}; wait'",
        marker.display()
    );
    std::fs::write(&marker, "").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&marker, std::fs::Permissions::from_mode(0o666)).unwrap();
    let slow = format!("type = \"exec\"\ncommand = \"{slow}\"\nanswer_timeout = \"300ms\"");
    let rows: &[(&str, Expect)] = &[
        ("type = \"exec\"\ncommand = \"/bin/true\"", Up),
        (
            "type = \"exec\"\ncommand = \"/bin/false\"",
            Down("/bin/false ended with exit status: 1"),
        ),
        (
            "type = \"exec\"\ncommand = \"/bin/sh -c 'test $(id -un) = nobody'\"",
            Up,
        ),
        // Without a shell nothing stands for something else.
        (
            "type = \"exec\"\ncommand = [\"/bin/ls\", \"$HOME\"]",
            Down("$HOME"),
        ),
        (
            "type = \"exec\"\ncommand = \"/bin/sh -c 'echo no disk >&2; exit 3'\"",
            Down("exit status: 3: no disk"),
        ),
        (
            "type = \"exec\"\ncommand = \"/no/such/program\"",
            Down("cannot run /no/such/program"),
        ),
        (
            "type = \"exec\"\ncommand = \"/bin/sh -c 'exit 12'\"\ndynamic_weight = true",
            Up,
        ),
        (
            "type = \"exec\"\ncommand = \"/bin/sh -c 'exit 1'\"\ndynamic_weight = true",
            Down("exit status: 1"),
        ),
        (
            "type = \"exec\"\ncommand = \"/bin/sh -c 'exit 2'\"\ndynamic_weight = true",
            Up,
        ),
        (&slow, Down("/bin/sh was killed after 300ms")),
    ];
    run(&mut checked, rows).unwrap();
    let weights: Vec<Option<u32>> = [0, 6, 8]
        .into_iter()
        .map(|index| checked.status(index).unwrap().advised_weight)
        .collect();
    assert_eq!(weights, [None, Some(10), Some(0)]);
    let services = checked.director.status().unwrap().data_plane.services;
    let backend = |index: usize| &services[index].backends[0];
    assert_eq!(
        (backend(0).weight, backend(6).weight, backend(8).weight),
        (20, 10, 0)
    );
    assert_eq!(backend(8).state, "draining");
    // What was killed was killed with its children.
    let pid = std::fs::read_to_string(&marker).unwrap();
    wait::until_true("the child has ended", Duration::from_secs(5), || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        Ok(stat.map_or(true, |stat| {
            stat.contains(") Z ") || !stat.contains("(sleep)")
        }))
    })
    .unwrap();
}

/// An agent and a file say the same words; what they say is followed while it changes.
#[test]
fn agents_and_files() {
    let mut checked = Checked::prepare().unwrap();
    let words = checked.path("words");
    let say = |text: &str| {
        // Readers must not see it half written.
        let new = words.with_extension("new");
        std::fs::write(&new, format!("{text}\n")).unwrap();
        std::fs::rename(&new, &words).unwrap();
    };
    say("up 100%");
    let command = format!("SYSTEM:cat {}", words.display());
    let program = "/usr/bin/socat".as_ref();
    let arguments = ["TCP-LISTEN:9001,fork,reuseaddr", &command];
    let agent =
        Process::start(&checked.lab, &checked.server, "agent", program, &arguments).unwrap();
    wait_for_port(&checked, 9001).unwrap();
    let checks = [
        "type = \"agent\"\nport = 9001".to_owned(),
        format!("type = \"file\"\nfile = \"{}\"", words.display()),
        "type = \"agent\"\nport = 9001\non_silence = \"down\"".to_owned(),
    ];
    checked.start(TIMING, &checks).unwrap();
    for (said, weight, state) in [
        ("50%", 10, "up"),
        ("7", 7, "up"),
        ("drain", 0, "draining"),
        ("ready up 100%", 20, "up"),
        ("down #disk is full", 20, "down"),
        ("up 25%", 5, "up"),
        ("maint", 20, "down"),
        ("ready up 100%", 20, "up"),
    ] {
        say(said);
        let what = format!("{said} is followed");
        wait::until_true(&what, Duration::from_secs(10), || {
            let services = checked.director.status()?.data_plane.services;
            let seen: Vec<(u32, String)> = services
                .iter()
                .map(|s| (s.backends[0].weight, s.backends[0].state.clone()))
                .collect();
            // Down says nothing of the weight.
            Ok(seen
                .iter()
                .all(|(w, s)| s == state && (state == "down" || *w == weight)))
        })
        .unwrap();
    }
    let text = checked.director.ctl(&["status"]).unwrap();
    assert!(text.contains("up for"), "{text}");
    // An agent that is gone says nothing, which counts only where it is told to.
    agent.stop().unwrap();
    wait::until_true("one is down", Duration::from_secs(10), || {
        Ok(!checked.status(2)?.up)
    })
    .unwrap();
    wait::until_true("the other knows nothing", Duration::from_secs(10), || {
        let silent = checked.status(0)?;
        Ok(silent.up && silent.checks[0].blind)
    })
    .unwrap();
    let problems = checked.director.status().unwrap().problems;
    let said = "the agent check of 10.1.15.45 says nothing: cannot connect to 10.1.15.45:9001";
    assert!(problems.iter().any(|p| p.contains(said)), "{problems:?}");
}

/// As HAProxy hears them: in capitals or not, and a line may end without the connection and without a line feed.
#[test]
fn an_agent_may_shout_and_stay() {
    let mut checked = Checked::prepare().unwrap();
    let program = "/usr/bin/socat".as_ref();
    let script = checked.path("agent.sh");
    std::fs::write(&script, "printf 'UP 50%%\\r'\nexec cat\n").unwrap();
    let says = format!("EXEC:/bin/sh {}", script.display());
    let arguments = ["TCP-LISTEN:9001,fork,reuseaddr", &says];
    let _agent =
        Process::start(&checked.lab, &checked.server, "agent", program, &arguments).unwrap();
    wait_for_port(&checked, 9001).unwrap();
    let check = "type = \"agent\"\nport = 9001\non_silence = \"down\"\nanswer_timeout = \"1s\"";
    run(&mut checked, &[(check, Up)]).unwrap();
    assert_eq!(checked.status(0).unwrap().advised_weight, Some(10));
}
