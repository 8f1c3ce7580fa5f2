//! Namespaces, the switch between them, and commands inside.

use std::{
    fs::File,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use crate::registry::{PREFIX, Registry, making};

/// Name of every host's interface, as in the deployment guide.
pub const INTERFACE: &str = "eno16777736";

/// A switch with hosts on it.
pub struct Lab {
    registry: Registry,
    switch: String,
    pass: PathBuf,
}

/// A host: a namespace with one interface on the switch.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name in the topology.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    namespace: String,
    port: String,
    switch: String,
}

impl Lab {
    /// An empty switch. Needs root.
    pub fn new() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the laboratory needs root"
        );
        let registry = Registry::create()?;
        let switch = format!("{PREFIX}-{}-switch", registry.id());
        add_namespace(&registry, &switch)?;
        for arguments in [
            &["link", "set", "lo", "up"][..],
            &[
                "link",
                "add",
                "br0",
                "type",
                "bridge",
                "mcast_snooping",
                "0",
                "forward_delay",
                "0",
            ],
            &["link", "set", "br0", "up"],
        ] {
            inside(&switch, "ip", arguments)?;
        }
        let bpffs = registry.directory().join("bpf");
        std::fs::create_dir(&bpffs)?;
        let target = bpffs.to_str().context("path")?;
        {
            let _making = making();
            registry.note_mount(&bpffs)?;
            run(Command::new("mount").args(["-t", "bpf", "bpf", target]))?;
        }
        // A veth driver transmits from XDP only when its peer runs a program as well.
        let pass = bpffs.join("pass");
        lb_user::dataplane::xdp::pin_pass(&pass)?;
        Ok(Self {
            registry,
            switch,
            pass,
        })
    }

    /// Adds a host with `address`/16.
    pub fn node(&self, name: &str, address: [u8; 4]) -> Result<Node> {
        let namespace = format!("{PREFIX}-{}-{name}", self.registry.id());
        let address = Ipv4Addr::from(address);
        let port = format!("p-{name}");
        add_namespace(&self.registry, &namespace)?;
        let node = Node {
            name: name.to_owned(),
            address,
            namespace,
            port,
            switch: self.switch.clone(),
        };
        node.ip(&["link", "set", "lo", "up"])?;
        self.plug(&node)?;
        Ok(node)
    }

    /// Gives a host its interface, with its address; one that it had is removed first.
    pub fn plug(&self, node: &Node) -> Result<()> {
        let (switch, port) = (&self.switch, &node.port);
        if node.ip(&["link", "show", INTERFACE]).is_ok() {
            node.ip(&["link", "delete", INTERFACE])?;
        }
        inside(
            switch,
            "ip",
            &[
                "link",
                "add",
                port,
                "type",
                "veth",
                "peer",
                "name",
                INTERFACE,
                "netns",
                &node.namespace,
            ],
        )?;
        inside(switch, "ip", &["link", "set", port, "master", "br0", "up"])?;
        let pinned = self.pass.to_str().context("path")?;
        inside(
            switch,
            "ip",
            &["link", "set", "dev", port, "xdpdrv", "pinned", pinned],
        )?;
        let network = format!("{}/16", node.address);
        node.ip(&["address", "add", &network, "dev", INTERFACE])?;
        node.ip(&["link", "set", INTERFACE, "up"])?;
        // XDP sees checksums that the sender left to its hardware, and receivers drop them.
        node.run("ethtool", &["-K", INTERFACE, "tx", "off"])
            .map(|_| ())
    }

    /// A cable between two hosts beside the switch, `eth1` to `eth1`, as a network of its own.
    pub fn second_network(
        &self,
        a: &Node,
        a_address: [u8; 4],
        b: &Node,
        b_address: [u8; 4],
    ) -> Result<()> {
        a.ip(&[
            "link",
            "add",
            "eth1",
            "type",
            "veth",
            "peer",
            "name",
            "eth1",
            "netns",
            &b.namespace,
        ])?;
        self.with_pass(b, "eth1")?;
        for (node, address) in [(a, a_address), (b, b_address)] {
            let network = format!("{}/16", Ipv4Addr::from(address));
            node.ip(&["address", "add", &network, "dev", "eth1"])?;
            node.ip(&["link", "set", "eth1", "up"])?;
            node.run("ethtool", &["-K", "eth1", "tx", "off"])?;
        }
        Ok(())
    }

    /// Gives an interface the program that lets everything pass: the other end of a veth may then send frames
    /// that XDP redirects.
    pub fn with_pass(&self, node: &Node, interface: &str) -> Result<()> {
        let pinned = self.pass.to_str().context("path")?;
        node.ip(&["link", "set", "dev", interface, "xdpdrv", "pinned", pinned])
            .map(|_| ())
    }

    /// Takes it away.
    pub fn without_pass(&self, node: &Node, interface: &str) -> Result<()> {
        node.ip(&["link", "set", "dev", interface, "xdpdrv", "off"])
            .map(|_| ())
    }

    /// Where the program is pinned that does nothing.
    pub fn pass(&self) -> &Path {
        &self.pass
    }

    /// A directory for files of the laboratory.
    pub fn directory(&self) -> &Path {
        self.registry.directory()
    }

    /// A pin directory on the laboratory's own bpffs.
    pub fn pin_path(&self, name: &str) -> PathBuf {
        self.registry.directory().join("bpf").join(name)
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A command on the switch.
    pub fn on_switch(&self, program: &str, arguments: &[&str]) -> Result<String> {
        inside(&self.switch, program, arguments)
    }
}

impl Node {
    /// Runs `ip` on the host.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        self.run("ip", arguments)
    }

    /// Runs a command on the host and returns what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        inside(&self.namespace, program, arguments)
    }

    /// A command that will run on the host.
    pub fn command(&self, program: &str) -> Command {
        entering(&self.namespace, program)
    }

    /// Sets a sysctl of the host's network, in dotted form after `net.`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
        self.run("sh", &["-c", &format!("echo {value} > {path}")])
            .map(|_| ())
    }

    /// Runs `work` on a thread inside the host's network.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.open()?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || -> Result<T> {
                    setns(namespace, CloneFlags::CLONE_NEWNET).context("enter a namespace")?;
                    Ok(work())
                })
                .join()
                .map_err(|panic| anyhow::anyhow!("panicked: {panic:?}"))?
        })
    }

    /// The namespace as a file, for threads that enter it themselves.
    pub fn open(&self) -> Result<File> {
        let path = format!("/run/netns/{}", self.namespace);
        File::open(&path).with_context(|| format!("open {path}"))
    }

    /// Cuts or restores the cable: the host sees the carrier go.
    pub fn cable(&self, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        inside(&self.switch, "ip", &["link", "set", &self.port, state]).map(|_| ())
    }

    /// Takes the port out of the bridge, or puts it back: frames vanish while the carrier stays.
    pub fn silently(&self, connected: bool) -> Result<()> {
        let master: &[&str] = if connected {
            &["master", "br0"]
        } else {
            &["nomaster"]
        };
        let arguments = [&["link", "set", self.port.as_str()], master].concat();
        inside(&self.switch, "ip", &arguments).map(|_| ())
    }

    /// What `ip` tells of addresses, routes and rules, of both versions of IP, when no address is
    /// tentative any more.
    pub fn picture(&self) -> Result<String> {
        crate::wait::until("addresses are settled", Duration::from_secs(5), || {
            let picture = self.present_picture()?;
            Ok((!picture.contains("tentative")).then_some(picture))
        })
    }

    fn present_picture(&self) -> Result<String> {
        let mut picture = String::new();
        for arguments in [
            &["-details", "address", "show"][..],
            &["-4", "route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
            &["-4", "rule", "show"],
            &["-6", "rule", "show"],
        ] {
            picture += &format!("{arguments:?}\n{}", self.ip(arguments)?);
        }
        Ok(picture)
    }

    /// MAC address of the host's interface.
    pub fn mac(&self) -> Result<String> {
        let text = self.ip(&["-json", "link", "show", INTERFACE])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        Ok(links[0]["address"]
            .as_str()
            .context("no MAC address")?
            .to_owned())
    }

    /// Interface index of the host's interface.
    pub fn ifindex(&self) -> Result<u32> {
        let text = self.ip(&["-json", "link", "show", INTERFACE])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        Ok(u32::try_from(
            links[0]["ifindex"].as_u64().context("no index")?,
        )?)
    }

    /// IPv4 addresses of the host's interface.
    pub fn addresses(&self) -> Result<Vec<String>> {
        let text = self.ip(&["-json", "-4", "address", "show", INTERFACE])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let list = links[0]["addr_info"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        Ok(list
            .iter()
            .filter_map(|a| a["local"].as_str().map(str::to_owned))
            .collect())
    }

    /// The MAC address that the host has for `address`.
    pub fn neighbour(&self, address: &str) -> Result<Option<String>> {
        let text = self.ip(&["-json", "neigh", "show", address])?;
        let list: serde_json::Value =
            serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text })?;
        Ok(list[0]["lladdr"].as_str().map(str::to_owned))
    }

    /// Whether an XDP program is attached to the host's interface.
    pub fn has_xdp(&self) -> Result<bool> {
        Ok(self.ip(&["link", "show", INTERFACE])?.contains("xdp"))
    }
}

fn add_namespace(registry: &Registry, name: &str) -> Result<()> {
    let _making = making();
    registry.note_namespace(name)?;
    host(&["netns", "add", name]).map(|_| ())
}

fn entering(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    // Unlike `ip netns exec`, this leaves /sys and with it the bpffs alone.
    command
        .arg(format!("--net=/run/netns/{namespace}"))
        .arg("--")
        .arg(program);
    command
}

fn inside(namespace: &str, program: &str, arguments: &[&str]) -> Result<String> {
    run(entering(namespace, program).args(arguments))
}

fn host(arguments: &[&str]) -> Result<String> {
    run(Command::new("ip").args(arguments))
}

/// Runs a command and returns its standard output; anything but success is an error with its words.
pub fn run(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!(
            "{command:?}: {status}: {}",
            String::from_utf8_lossy(&stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
