//! What happened, in keepalived's words: arguments of scripts, lines of the FIFO, subjects and bodies of
//! mails, as keepalived 2.2.7 writes them. Pure.

use std::net::IpAddr;

use crate::model::{ServiceId, VrrpState};

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A VRRP instance entered a state.
    Instance {
        /// Its name.
        name: String,
        /// The state.
        state: VrrpState,
        /// The priority in force.
        priority: u8,
    },
    /// All instances of a sync group entered a state.
    Group {
        /// Its name.
        name: String,
        /// The state.
        state: VrrpState,
    },
    /// A real server of a service went up or down.
    RealServer {
        /// The service.
        service: ServiceId,
        /// The real server.
        address: IpAddr,
        /// What its check is called in mails: "TCP CHECK", or "CHECK" for HTTP.
        check: &'static str,
        /// Why it is down; `None`: it is up.
        down: Option<String>,
    },
    /// A service gained or lost its quorum.
    Quorum {
        /// The service.
        service: ServiceId,
        /// Weight that must be alive.
        quorum: u32,
        /// How much more it takes to gain it, and how much less to lose it.
        hysteresis: u32,
        /// Weight that is alive.
        live: u64,
        /// Gained.
        up: bool,
    },
}

impl Event {
    /// The four arguments that `notify` gets; `None` where there are no scripts.
    pub fn arguments(&self) -> Option<[String; 4]> {
        let (kind, name, state, priority) = match self {
            Event::Instance {
                name,
                state,
                priority,
            } => ("INSTANCE", name, *state, *priority),
            Event::Group { name, state } => ("GROUP", name, *state, 0),
            Event::RealServer { .. } | Event::Quorum { .. } => return None,
        };
        Some([
            kind.to_owned(),
            name.clone(),
            word(state).to_owned(),
            priority.to_string(),
        ])
    }

    /// The line of the FIFO, with its newline.
    pub fn fifo_line(&self) -> String {
        match self {
            Event::Instance {
                name,
                state,
                priority,
            } => format!("INSTANCE \"{name}\" {} {priority}\n", word(*state)),
            Event::Group { name, state } => format!("GROUP \"{name}\" {} 0\n", word(*state)),
            Event::RealServer {
                service,
                address,
                down,
                ..
            } => format!(
                "RS {} {} {}\n",
                endpoint(*address, service),
                endpoint(service.address, service),
                up_or_down(down.is_none())
            ),
            Event::Quorum { service, up, .. } => {
                let name = endpoint(service.address, service);
                format!("VS {name} {}\n", up_or_down(*up))
            }
        }
    }

    /// Subject of the mail.
    pub fn subject(&self, router_id: &str) -> String {
        let what = match self {
            Event::Instance { name, state, .. } => {
                format!("VRRP Instance {name} - {}", entering(*state))
            }
            Event::Group { name, state } => format!("VRRP Group {name} - {}", entering(*state)),
            Event::RealServer {
                service,
                address,
                down,
                ..
            } => format!(
                "Realserver {} of virtual server {} - {}",
                endpoint(*address, service),
                endpoint(service.address, service),
                up_or_down(down.is_none())
            ),
            Event::Quorum { service, up, .. } => {
                let name = endpoint(service.address, service);
                format!("Virtualserver {name} - {}", up_or_down(*up))
            }
        };
        // A header is one line, whatever the configuration has in its names.
        format!("[{router_id}] {what}").replace(char::is_control, " ")
    }

    /// Body of the mail: keepalived's line, and the cause where there is one.
    pub fn body(&self) -> String {
        match self {
            Event::Instance { state, .. } => match state {
                VrrpState::Master => "=> VRRP Instance is now owning VRRP VIPs <=\n".to_owned(),
                VrrpState::Backup | VrrpState::Fault => {
                    "=> VRRP Instance is no longer owning VRRP VIPs <=\n".to_owned()
                }
                VrrpState::Init => "=> VRRP Instance stopping <=\n".to_owned(),
            },
            Event::Group { state, .. } => match state {
                VrrpState::Init => "=> All VRRP group instances are now stopping <=\n".to_owned(),
                VrrpState::Master | VrrpState::Backup | VrrpState::Fault => format!(
                    "=> All VRRP group instances are now in {} state <=\n",
                    word(*state)
                ),
            },
            Event::RealServer {
                check, down: None, ..
            } => format!("=> {check} succeed on service <=\n"),
            Event::RealServer {
                check,
                down: Some(cause),
                ..
            } => format!("=> {check} failed on service <=\n\n{cause}\n"),
            // As in keepalived's log: its mail has the signs of a gain in both.
            Event::Quorum {
                quorum,
                hysteresis,
                live,
                up,
                ..
            } => match up {
                true => {
                    let needed = u64::from(*quorum) + u64::from(*hysteresis);
                    format!("=> Gained quorum {quorum}+{hysteresis}={needed} <= {live} <=\n")
                }
                false => {
                    let needed = quorum.saturating_sub(*hysteresis);
                    format!("=> Lost quorum {quorum}-{hysteresis}={needed} > {live} <=\n")
                }
            },
        }
    }
}

/// A state as scripts know it.
fn word(state: VrrpState) -> &'static str {
    match state {
        VrrpState::Master => "MASTER",
        VrrpState::Backup => "BACKUP",
        VrrpState::Fault => "FAULT",
        VrrpState::Init => "STOP",
    }
}

fn entering(state: VrrpState) -> String {
    match state {
        VrrpState::Init => "Stopping".to_owned(),
        VrrpState::Master | VrrpState::Backup | VrrpState::Fault => {
            format!("Entering {} state", word(state))
        }
    }
}

fn up_or_down(up: bool) -> &'static str {
    if up { "UP" } else { "DOWN" }
}

/// `[10.1.15.50]:tcp:80`, of either version of IP.
fn endpoint(address: IpAddr, service: &ServiceId) -> String {
    let protocol = service.protocol.to_string().to_lowercase();
    format!("[{address}]:{protocol}:{}", service.ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn real_server(address: &str, vip: &str, down: Option<&str>) -> Event {
        Event::RealServer {
            service: ServiceId::new(Protocol::Tcp, vip.parse().unwrap()),
            address: address.parse().unwrap(),
            check: "TCP CHECK",
            down: down.map(str::to_owned),
        }
    }

    fn instance(state: VrrpState) -> Event {
        Event::Instance {
            name: "VI_1".into(),
            state,
            priority: 95,
        }
    }

    fn group(state: VrrpState) -> Event {
        Event::Group {
            name: "VG_1".into(),
            state,
        }
    }

    fn quorum(live: u64, up: bool) -> Event {
        Event::Quorum {
            service: ServiceId::new(Protocol::Tcp, "10.1.15.50:80".parse().unwrap()),
            quorum: 3,
            hysteresis: 1,
            live,
            up,
        }
    }

    /// As seen of keepalived 2.2.7: event, arguments and line, subject, first line of the body.
    #[test]
    fn keepalived_conventions() {
        let rows = [
            (
                instance(VrrpState::Master),
                Some("INSTANCE VI_1 MASTER 95"),
                "INSTANCE \"VI_1\" MASTER 95\n",
                "[node1] VRRP Instance VI_1 - Entering MASTER state",
                "=> VRRP Instance is now owning VRRP VIPs <=",
            ),
            (
                instance(VrrpState::Backup),
                Some("INSTANCE VI_1 BACKUP 95"),
                "INSTANCE \"VI_1\" BACKUP 95\n",
                "[node1] VRRP Instance VI_1 - Entering BACKUP state",
                "=> VRRP Instance is no longer owning VRRP VIPs <=",
            ),
            (
                instance(VrrpState::Fault),
                Some("INSTANCE VI_1 FAULT 95"),
                "INSTANCE \"VI_1\" FAULT 95\n",
                "[node1] VRRP Instance VI_1 - Entering FAULT state",
                "=> VRRP Instance is no longer owning VRRP VIPs <=",
            ),
            (
                instance(VrrpState::Init),
                Some("INSTANCE VI_1 STOP 95"),
                "INSTANCE \"VI_1\" STOP 95\n",
                "[node1] VRRP Instance VI_1 - Stopping",
                "=> VRRP Instance stopping <=",
            ),
            (
                group(VrrpState::Master),
                Some("GROUP VG_1 MASTER 0"),
                "GROUP \"VG_1\" MASTER 0\n",
                "[node1] VRRP Group VG_1 - Entering MASTER state",
                "=> All VRRP group instances are now in MASTER state <=",
            ),
            (
                group(VrrpState::Init),
                Some("GROUP VG_1 STOP 0"),
                "GROUP \"VG_1\" STOP 0\n",
                "[node1] VRRP Group VG_1 - Stopping",
                "=> All VRRP group instances are now stopping <=",
            ),
            (
                quorum(5, true),
                None,
                "VS [10.1.15.50]:tcp:80 UP\n",
                "[node1] Virtualserver [10.1.15.50]:tcp:80 - UP",
                "=> Gained quorum 3+1=4 <= 5 <=",
            ),
            (
                quorum(1, false),
                None,
                "VS [10.1.15.50]:tcp:80 DOWN\n",
                "[node1] Virtualserver [10.1.15.50]:tcp:80 - DOWN",
                "=> Lost quorum 3-1=2 > 1 <=",
            ),
            (
                real_server("10.1.15.45", "10.1.15.50:80", Some("refused")),
                None,
                "RS [10.1.15.45]:tcp:80 [10.1.15.50]:tcp:80 DOWN\n",
                "[node1] Realserver [10.1.15.45]:tcp:80 of virtual server [10.1.15.50]:tcp:80 - DOWN",
                "=> TCP CHECK failed on service <=",
            ),
            (
                real_server("2001:db8::45", "[2001:db8::50]:443", None),
                None,
                "RS [2001:db8::45]:tcp:443 [2001:db8::50]:tcp:443 UP\n",
                "[node1] Realserver [2001:db8::45]:tcp:443 of virtual server [2001:db8::50]:tcp:443 - UP",
                "=> TCP CHECK succeed on service <=",
            ),
        ];
        for (event, arguments, line, subject, body) in rows {
            let given = event.arguments().map(|words| words.join(" "));
            assert_eq!(given.as_deref(), arguments);
            assert_eq!(event.fifo_line(), line);
            assert_eq!(event.subject("node1"), subject);
            assert_eq!(event.body().lines().next(), Some(body));
        }
    }

    #[test]
    fn a_name_cannot_add_headers() {
        let subject = instance(VrrpState::Master).subject("node1\r\nBcc: all@example.net");
        assert!(!subject.contains(['\r', '\n']), "{subject}");
    }
}
