//! The VIP on a real server, asked for by every protocol, over IPv4 and IPv6, by a MASTER and by a BACKUP: a
//! pair of directors and one real server. Shared by both data planes' tests.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{
    Director, Lab, Node, Process,
    network::INTERFACE,
    server::{self, accept_vip},
    servers, wait,
};
use lb_user::{api::proto::CheckStatus, model::VrrpState};

use crate::certificates::make_certificates;

/// The VIPs.
pub const VIPS: [&str; 2] = ["10.1.15.50", "2001:db8::50"];
/// The real server's own addresses.
pub const SERVERS: [&str; 2] = ["10.1.15.45", "2001:db8::45"];

/// A kind of check: its keys, its port, and what is said of a real server without the VIP.
struct Row {
    keys: &'static str,
    port: u16,
    said: &'static str,
}

const ROWS: [Row; 5] = [
    Row {
        keys: "type = \"tcp\"",
        port: 80,
        said: "did not accept a connection within",
    },
    Row {
        keys: "type = \"http\"\nbody = \"well\"",
        port: 80,
        said: "did not accept a connection within",
    },
    Row {
        keys: "type = \"https\"\nbody = \"well\"\nhost = \"www.example.com\"\nca_file = \"DIR/ca.pem\"",
        port: 443,
        said: "did not accept a connection within",
    },
    Row {
        keys: "type = \"udp\"\npayload = \"616263\"\nreply = \"616263\"",
        port: 7,
        said: "did not reply as expected within",
    },
    Row {
        keys: "type = \"dns\"\nname = \"www.example.com\"\nexpect = \"192.0.2.1\"",
        port: 53,
        said: "did not answer",
    },
];

/// The hosts. Fields are dropped in this order.
pub struct Grid {
    pub master: Director,
    pub backup: Director,
    pub server: Node,
    _servers: Vec<Process>,
    pub lab: Lab,
    dns: bool,
}

impl Grid {
    /// Everything but the directors, which get `head` before their services and `keys` in each. Without
    /// `dns` nobody asks for names.
    pub fn prepare(head: &str, keys: &str, dns: bool) -> Result<Self> {
        let lab = Lab::new()?;
        let [master, backup, server] =
            [("node1", 43), ("node2", 44), ("rs1", 45)].map(|(name, last)| -> Result<Node> {
                let node = lab.node(name, [10, 1, 15, last])?;
                for address in [format!("2001:db8::{last}/64"), format!("fe80::{last}/64")] {
                    node.ip(&["address", "add", &address, "dev", INTERFACE, "nodad"])?;
                }
                Ok(node)
            });
        let (master, backup, server) = (master?, backup?, server?);
        accept_vip(&server, VIPS[0])?;
        has_vip(&server, 1, true)?;
        make_certificates(lab.directory())?;
        let mut servers = vec![start_nginx(&lab, &server)?];
        for (index, vip) in VIPS.iter().enumerate() {
            servers.push(start_echo(&lab, &server, index, vip)?);
        }
        if dns {
            let records = ["--host-record=www.example.com,192.0.2.1"];
            servers.push(servers::dnsmasq(&lab, &server, &records)?);
        }
        let directory = lab.directory().display().to_string();
        let config = |priority: u8| {
            let services: String = (0..2)
                .map(|index| services(index, keys, dns, &directory))
                .collect();
            format!("{head}{}{services}", instances(priority))
        };
        Ok(Self {
            master: Director::new(&lab, &master, &config(100))?,
            backup: Director::new(&lab, &backup, &config(98))?,
            server,
            _servers: servers,
            lab,
            dns,
        })
    }

    /// Starts both directors, and waits until one is MASTER and the other is BACKUP.
    pub fn start(&mut self) -> Result<()> {
        for (director, state) in [
            (&mut self.master, VrrpState::Master),
            (&mut self.backup, VrrpState::Backup),
        ] {
            director.start(&self.lab)?;
            for instance in ["VI_4", "VI_6"] {
                director.wait_for(instance, state)?;
            }
        }
        Ok(())
    }

    /// The whole grid: all checks pass by the VIP; one family's fail on both directors without that
    /// family's VIP, and for that reason, while the other's go on.
    pub fn walk(&self) -> Result<()> {
        self.wait_for([true, true])?;
        for index in 0..2 {
            has_vip(&self.server, index, false)?;
            let mut up = [true, true];
            up[index] = false;
            self.wait_for(up)?;
            has_vip(&self.server, index, true)?;
            self.wait_for([true, true])?;
        }
        Ok(())
    }

    /// Waits until both directors know the real server to be so, over IPv4 and over IPv6.
    pub fn wait_for(&self, up: [bool; 2]) -> Result<()> {
        for director in [&self.master, &self.backup] {
            let what = format!("{}: {up:?}", director.node.name);
            wait::until_true(&what, Duration::from_secs(60), || {
                let checks = director.status()?.checks;
                let expected = 2 * (ROWS.len() - usize::from(!self.dns));
                ensure!(checks.len() == expected, "{} checks", checks.len());
                for check in &checks {
                    is_as_expected(check, up)?;
                }
                Ok(true)
            })?;
        }
        Ok(())
    }
}

/// Whether a check asked for the VIP, with this result; an error says what is wrong.
fn is_as_expected(check: &CheckStatus, up: [bool; 2]) -> Result<()> {
    let index = usize::from(check.backend == SERVERS[1]);
    let probe = &check.checks[0];
    let suffix = format!(" on {}", check.backend);
    ensure!(
        probe.target.contains(VIPS[index]) && probe.target.ends_with(&suffix),
        "{check:?}"
    );
    let row = ROWS
        .iter()
        .find(|row| row.keys.contains(&format!("\"{}\"", probe.kind)));
    let said = row.map_or("nothing", |row| row.said);
    let cause = check.cause.as_deref().unwrap_or_default();
    let names = cause.contains(VIPS[index]) && cause.contains(said);
    // Twice at least: the first may have been made before the daemon knew its way.
    let passes = check.up && probe.attempts >= 2 && !probe.blind;
    ensure!(
        if up[index] {
            passes
        } else {
            !check.up && names
        },
        "{check:?}"
    );
    Ok(())
}

/// Gives the real server a VIP, or takes it away.
pub fn has_vip(server: &Node, index: usize, present: bool) -> Result<()> {
    let length = ["32", "128"][index];
    let vip = format!("{}/{length}", VIPS[index]);
    let verb = if present { "add" } else { "del" };
    server.ip(&["address", verb, &vip, "dev", "lo"]).map(drop)
}

fn instances(priority: u8) -> String {
    let rows = [
        ("VI_4", 20, "\"10.1.15.50/16\""),
        ("VI_6", 21, "\"fe80::50/64\", \"2001:db8::50/64\""),
    ];
    rows.map(|(name, vrid, addresses)| {
        format!(
            "[[vrrp]]\nname = \"{name}\"\ninterface = \"{INTERFACE}\"\nversion = 3\nvirtual_router_id = {vrid}\n\
             priority = {priority}\nadvert_interval = \"1s\"\naddresses = [{addresses}]\n"
        )
    })
    .concat()
}

fn services(index: usize, more: &str, dns: bool, directory: &str) -> String {
    let (vip, server) = (VIPS[index], SERVERS[index]);
    let rows = ROWS.iter().filter(|row| dns || row.port != 53);
    let service = |(number, row): (usize, &Row)| {
        let address = match index {
            0 => format!("{vip}:{}", 2_000 + number),
            _ => format!("[{vip}]:{}", 2_000 + number),
        };
        let keys = row.keys.replace("DIR", directory);
        format!(
            "[[service]]\naddress = \"{address}\"\n{more}[service.check]\n{keys}\nport = {}\ntarget = \"vip\"\n\
             interval = \"300ms\"\nretries = 1\ndelay_before_retry = \"100ms\"\n[[service.backend]]\naddress = \"{server}\"\n",
            row.port
        )
    };
    rows.enumerate().map(service).collect()
}

fn start_nginx(lab: &Lab, server: &Node) -> Result<Process> {
    let d = lab.directory().display();
    let servers = format!(
        "  server {{
    listen 80; listen [::]:80; listen 443 ssl; listen [::]:443 ssl;
    ssl_certificate {d}/good.pem; ssl_certificate_key {d}/good.key;
    location / {{ return 200 \"all is well\\n\"; }}
  }}"
    );
    server::start_nginx(lab, server, &lab.directory().join("nginx"), &servers)
}

/// Bound to the VIP: socat answers from the address that it is bound to.
fn start_echo(lab: &Lab, server: &Node, index: usize, vip: &str) -> Result<Process> {
    let listen = match index {
        0 => format!("UDP4-RECVFROM:7,bind={vip},fork"),
        _ => format!("UDP6-RECVFROM:7,bind=[{vip}],ipv6only=1,fork"),
    };
    servers::echo(lab, server, &format!("echo{index}"), &listen)
}
