//! Whatever is wrong at the start: a clear error that says what to do, a non-zero exit, and nothing
//! left behind.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output},
};

use lab::{
    Director, Lab, Node, binaries,
    guide::{self, Settings},
    network::INTERFACE,
};

struct Stage {
    node: Node,
    lab: Lab,
}

impl Stage {
    fn new() -> Self {
        let lab = Lab::new().unwrap();
        let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
        Self { node, lab }
    }

    fn director(&self, config: &str) -> Director {
        Director::new(&self.lab, &self.node, config).unwrap()
    }

    /// Runs lbd to its end.
    fn lbd(&self, director: &Director) -> Output {
        self.lbd_by(self.node.command(&lbd()), director)
    }

    fn lbd_by(&self, mut command: Command, director: &Director) -> Output {
        command
            .arg("--config")
            .arg(&director.config)
            .output()
            .unwrap()
    }
}

fn lbd() -> String {
    binaries::find("lbd")
        .unwrap()
        .to_string_lossy()
        .into_owned()
}

fn good() -> String {
    guide::config(&Settings::of(100))
}

fn refuses(output: &Output, code: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

fn nothing_left(director: &Director) {
    assert_eq!(
        director.leftovers(&["10.1.15.50"]).unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn faults_in_the_file() {
    let stage = Stage::new();
    let twice = |text: String| {
        let instance = &text[..text.find("[[service]]").unwrap()];
        format!("{text}{}", instance.replace("VI_1", "VI_2"))
    };
    let rows: Vec<(&str, String, &[&str])> = vec![
        (
            "unknown key",
            good().replacen("scheduler", "shceduler", 1),
            &["unknown key `shceduler`", "did you mean `scheduler`?"],
        ),
        (
            "wrong type",
            good().replacen("retries = 1", "retries = \"one\"", 1),
            &["`retries` must be an integer"],
        ),
        (
            "bad address",
            good().replacen("10.1.15.45", "10.1.15.345", 1),
            &["`10.1.15.345` is not an IP address"],
        ),
        (
            "weight -1",
            good().replacen("weight = 1", "weight = -1", 1),
            &["`weight` is -1, which is out of range"],
        ),
        (
            "duplicate VRID and VIP",
            twice(good()),
            &[
                "duplicate virtual_router_id 20",
                "duplicate virtual address 10.1.15.50",
                "2 errors",
            ],
        ),
    ];
    for (what, config, parts) in rows {
        let director = stage.director(&config);
        refuses(
            &stage.lbd(&director),
            4,
            &[parts, &["node1.toml:"]].concat(),
        );
        nothing_left(&director);
        let mut check = stage.node.command(&lbd());
        refuses(
            &check
                .args(["--check", "--config"])
                .arg(&director.config)
                .output()
                .unwrap(),
            4,
            parts,
        );
        println!("{what}: refused");
    }
    let director = stage.director(&good());
    let output = stage
        .node
        .command(&lbd())
        .args(["--check", "--config"])
        .arg(&director.config)
        .output()
        .unwrap();
    assert!(output.status.success(), "the unchanged file is valid");
    fs::remove_file(&director.config).unwrap();
    refuses(
        &stage.lbd(&director),
        1,
        &["cannot read", "node1.toml", "No such file"],
    );
    assert_eq!(
        stage
            .node
            .command(&lbd())
            .arg("--nonsense")
            .output()
            .unwrap()
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn a_missing_interface() {
    let stage = Stage::new();
    let director = stage.director(&good().replace(INTERFACE, "eth9"));
    refuses(
        &stage.lbd(&director),
        1,
        &["interface eth9 does not exist", "`ip link`"],
    );
    nothing_left(&director);
}

#[test]
fn a_source_address_that_is_not_there() {
    let stage = Stage::new();
    let config = good().replacen(
        "priority = 100",
        "priority = 100\nsource_address = \"10.1.15.77\"",
        1,
    );
    let director = stage.director(&config);
    refuses(
        &stage.lbd(&director),
        1,
        &[
            "source_address 10.1.15.77 is not an address of eno16777736",
            "ip address show",
        ],
    );
    nothing_left(&director);
}

#[test]
fn a_service_without_any_interface() {
    let stage = Stage::new();
    let director = stage.director(
        "[[service]]\naddress = \"10.1.15.50:80\"\n[[service.backend]]\naddress = \"10.1.15.45\"\n",
    );
    refuses(
        &stage.lbd(&director),
        4,
        &["a service, but no interface", "[dataplane] interfaces"],
    );
    nothing_left(&director);
}

#[test]
fn no_capability() {
    let stage = Stage::new();
    let director = stage.director(&good());
    // The unprivileged account must be able to reach the program and the file.
    let folder = stage.lab.directory();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    let program = folder.join("lbd");
    fs::copy(lbd(), &program).unwrap();
    let mut command = stage.node.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program);
    refuses(
        &stage.lbd_by(command, &director),
        1,
        &["CAP_NET_RAW", "root", "not permitted"],
    );
    nothing_left(&director);
    // With raw sockets but without BPF it is the program that cannot be loaded.
    let mut command = stage.node.command("setpriv");
    command
        .args([
            "--bounding-set=-bpf,-sys_admin,-perfmon",
            "--inh-caps=-bpf,-sys_admin,-perfmon",
        ])
        .arg(&program);
    refuses(
        &stage.lbd_by(command, &director),
        1,
        &["no permission to load BPF maps and programs", "CAP_BPF"],
    );
    nothing_left(&director);
}

#[test]
fn an_interface_that_refuses_native_xdp() {
    let stage = Stage::new();
    stage
        .node
        .ip(&["link", "add", "br7", "type", "bridge"])
        .unwrap();
    stage.node.ip(&["link", "set", "br7", "up"]).unwrap();
    let on_bridge =
        |extra: &str| format!("{}\n[dataplane]\ninterfaces = [\"br7\"]\n{extra}", good());
    let director = stage.director(&on_bridge(""));
    refuses(
        &stage.lbd(&director),
        1,
        &["br7 refuses native XDP", "allow_generic = true"],
    );
    nothing_left(&director);
    let mut director = stage.director(&on_bridge("allow_generic = true"));
    director.start(&stage.lab).unwrap();
    let attachment = &director.status().unwrap().data_plane.interfaces[0];
    assert_eq!(
        (attachment.interface.as_str(), attachment.mode.as_str()),
        ("br7", "generic")
    );
    assert!(
        director
            .log()
            .contains("native XDP refused; using generic XDP"),
        "{}",
        director.log()
    );
    director.stop().unwrap();
    nothing_left(&director);
}

#[test]
fn another_xdp_program_on_the_interface() {
    let stage = Stage::new();
    let pass = stage.lab.pin_path("pass");
    let attach = ["link", "set", "dev", INTERFACE, "xdpdrv"];
    stage
        .node
        .ip(&[&attach[..], &["pinned", &pass.to_string_lossy()]].concat())
        .unwrap();
    let director = stage.director(&good());
    refuses(
        &stage.lbd(&director),
        1,
        &["another XDP program is attached", "xdp off"],
    );
    stage.node.ip(&[&attach[..], &["off"]].concat()).unwrap();
    nothing_left(&director);
}

#[test]
fn pins_that_are_not_on_a_bpffs() {
    let stage = Stage::new();
    let director = stage.director(&good());
    let text = fs::read_to_string(&director.config).unwrap();
    let elsewhere = text.replace(
        &stage.lab.pin_path("node1").display().to_string(),
        "/tmp/lbd-no-bpffs",
    );
    fs::write(&director.config, elsewhere).unwrap();
    refuses(
        &stage.lbd(&director),
        1,
        &["cannot use /tmp/lbd-no-bpffs for pins", "mount -t bpf"],
    );
    assert!(!PathBuf::from("/tmp/lbd-no-bpffs").exists());
}

#[test]
fn a_second_daemon() {
    let stage = Stage::new();
    let mut first = stage.director(&good());
    first.start(&stage.lab).unwrap();
    let text = fs::read_to_string(&first.config).unwrap();
    let second = Director::new(&stage.lab, &stage.node, &good()).unwrap();
    refuses(
        &stage.lbd(&second),
        1,
        &["another lbd answers on", "node1.sock"],
    );
    fs::write(&second.config, text.replace("node1.sock", "other.sock")).unwrap();
    refuses(
        &stage.lbd(&second),
        1,
        &["another lbd is running with the pins", "pin_path"],
    );
    assert!(
        !stage.lab.directory().join("other.sock").exists(),
        "the refused daemon's socket is gone"
    );
    fs::write(&second.config, text).unwrap();
    assert!(first.status().is_ok(), "the first one is not disturbed");
    assert!(stage.node.has_xdp().unwrap());
    first.stop().unwrap();
    nothing_left(&first);
}

#[test]
fn an_unknown_script_account() {
    let stage = Stage::new();
    let director = stage.director(&good());
    let text = fs::read_to_string(&director.config).unwrap();
    fs::write(
        &director.config,
        text.replace("[runtime]", "[runtime]\nscript_user = \"no-such-account\""),
    )
    .unwrap();
    refuses(
        &stage.lbd(&director),
        1,
        &["there is no account `no-such-account`", "script_user"],
    );
    nothing_left(&director);
}

#[test]
fn lbctl_without_a_daemon() {
    let stage = Stage::new();
    let director = stage.director(&good());
    let output = director.lbctl(&["status"]).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.contains("cannot reach lbd at") && text.contains("node1.sock"),
        "{text}"
    );
    assert_eq!(
        director.lbctl(&["nonsense"]).unwrap().status.code(),
        Some(2)
    );
}
