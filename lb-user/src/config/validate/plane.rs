//! Which data plane, and whether it can do what services want.

use std::{net::IpAddr, ops::Range};

use super::Validator;
use crate::{
    config::{
        raw::{RawDataplane, RawSyncDaemon},
        reader::At,
    },
    model::{Instance, Mode, Protocol, SyncDaemonConfig, VirtualService},
};

impl Validator<'_> {
    pub(super) fn data_plane_mode(&mut self, raw: Option<&At<RawDataplane>>) -> Mode {
        let given = raw.and_then(|at| at.value.mode.as_ref());
        let given = given.map(|at| At {
            value: at.value.clone(),
            span: at.span.clone(),
        });
        self.choice(given, "mode", Mode::Auto, &Mode::ALL)
    }

    pub(super) fn sync_daemon(
        &mut self,
        raw: At<RawSyncDaemon>,
        instances: &[Instance],
    ) -> SyncDaemonConfig {
        let At { value: raw, span } = raw;
        if matches!(self.mode, Mode::Xdp | Mode::XdpGeneric) {
            let help = "it shares the connections of IPVS; leave it out with XDP";
            self.error(&span, "[lvs_sync_daemon] needs IPVS", help);
        }
        if let Some(at) = &raw.interface {
            self.interface_name(at);
        }
        if let Some(at) = &raw.vrrp
            && !instances.iter().any(|instance| instance.name == at.value)
        {
            let names: Vec<&str> = instances.iter().map(|i| i.name.as_str()).collect();
            let help = format!("there are: {}", names.join(", "));
            let message = format!("there is no VRRP instance `{}`", at.value);
            self.error(&at.span, message, &help);
        }
        let group = raw.group.map(|at| {
            let group = self.ip(&at, "group");
            let multicast = match group {
                IpAddr::V4(group) => group.is_multicast(),
                IpAddr::V6(group) => group.is_multicast(),
            };
            if !multicast {
                let message = format!("{group} is not a multicast address");
                self.error(&at.span, message, "the kernel's own is 224.0.0.81");
            }
            group
        });
        let mut given = |raw: Option<At<i64>>, key, range| {
            raw.map(|at| self.number(Some(at), key, range, 0, |_, _| {}))
        };
        let length = given(raw.max_length, "max_length", 200..=65_507);
        let port = given(raw.port, "port", 1..=65_535);
        let ttl = given(raw.ttl, "ttl", 1..=255);
        SyncDaemonConfig {
            interface: raw.interface.map(|at| at.value).unwrap_or_default(),
            instance: raw.vrrp.map(|at| at.value).unwrap_or_default(),
            id: self.small(raw.id, "id", 0..=255, 0),
            length: length.and_then(|length| u16::try_from(length).ok()),
            group,
            port: port.and_then(|port| u16::try_from(port).ok()),
            ttl: ttl.and_then(|ttl| u8::try_from(ttl).ok()),
        }
    }

    /// Something that IPVS has not, where IPVS is demanded.
    pub(super) fn only_in_xdp(&mut self, span: &Range<usize>, what: &str) {
        if self.mode == Mode::Ipvs {
            let message = format!("{what} needs XDP: IPVS does not limit or block anybody");
            let help = "leave it out with mode = \"ipvs\", and let nftables do it";
            self.error(span, message, help);
        }
    }

    /// Whether some data plane that is permitted can do what a service wants.
    pub(super) fn possible(&mut self, service: &VirtualService, span: &Range<usize>) {
        let (in_xdp, in_ipvs) = (service.xdp_lacks(), service.ipvs_lacks());
        if service.one_packet && service.id.protocol != Protocol::Udp {
            let help = "packets of one TCP or SCTP connection must reach one real server";
            self.error(span, "`one_packet` is for protocol \"udp\"", help);
        }
        let id = service.id;
        match (self.mode, in_xdp, in_ipvs) {
            (Mode::Xdp | Mode::XdpGeneric, Some(what), _) => {
                let message = format!("service {id}: XDP has no {what}");
                let help = "IPVS has it: [dataplane] mode = \"ipvs\" or \"auto\"";
                self.error(span, message, help);
            }
            (Mode::Ipvs, _, Some(what)) => {
                let message = format!("service {id}: IPVS has no {what}");
                let help = "XDP has them: [dataplane] mode = \"xdp\" or \"auto\"";
                self.error(span, message, help);
            }
            (Mode::Auto, Some(xdp), Some(ipvs)) => {
                let message = format!(
                    "service {id} asks for what no data plane has together: XDP has no {xdp}, and IPVS has no {ipvs}"
                );
                self.error(span, message, "give up one of the two");
            }
            (_, _, _) => {}
        }
        if service.rate.is_some() {
            self.only_in_xdp(span, "`new_connections_per_second`");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    fn errors(mode: &str, service: &str) -> String {
        let text = format!(
            "[dataplane]\nmode = \"{mode}\"\ninterfaces = [\"eth0\"]\n{service}\n[[service.backend]]\naddress = \"10.1.15.45\"\n"
        );
        parse("lbd.toml", &text, "host").map_or_else(|e| e.to_string(), |_| String::new())
    }

    fn web(keys: &str) -> String {
        format!("[[service]]\naddress = \"10.1.15.50:80\"\n{keys}")
    }

    #[test]
    fn what_only_ipvs_has() {
        for (keys, word) in [
            (
                "scheduler = \"lblc\"",
                "no scheduler lblc (it has rr, wrr, lc, wlc, sh, mh, fo)",
            ),
            (
                "forward = \"nat\"",
                "no `forward` \"nat\" (it has \"dr\" and \"tunnel\")",
            ),
            (
                "forward = \"tunnel\"\ntunnel_type = \"gre\"",
                "no `tunnel_type` \"gre\" (it has \"ipip\")",
            ),
            ("protocol = \"udp\"\none_packet = true", "no `one_packet`"),
            (
                "protocol = \"udp\"\npersistence_timeout = \"1m\"\npersistence_engine = \"sip\"",
                "no `persistence_engine` \"sip\"",
            ),
            (
                "fwmark = 7",
                "no `fwmark` (firewalls mark packets behind it)",
            ),
        ] {
            for mode in ["auto", "ipvs"] {
                assert_eq!(errors(mode, &web(keys)), "", "{keys}");
            }
            for mode in ["xdp", "xdp-generic"] {
                let message = errors(mode, &web(keys));
                assert!(message.contains(word), "{message}");
                assert!(message.contains("IPVS has it"), "{message}");
            }
        }
    }

    #[test]
    fn what_only_xdp_has() {
        let service =
            |address: &str, keys: &str| format!("[[service]]\naddress = \"{address}\"\n{keys}");
        let rows = [
            (service("10.1.15.50:1000-1999", ""), "no ranges of ports"),
            (
                service("10.1.15.50:0", ""),
                "no services of all ports without",
            ),
            (web("new_connections_per_second = 5"), "needs XDP"),
            (
                format!("[protection]\nblock = [\"192.0.2.0/24\"]\n{}", web("")),
                "[protection] needs XDP",
            ),
        ];
        for (text, word) in rows {
            for mode in ["auto", "xdp"] {
                assert_eq!(errors(mode, &text), "", "{text}");
            }
            let message = errors("ipvs", &text);
            assert!(message.contains(word), "{message}");
        }
        let sticky = service("10.1.15.50:0", "persistence_timeout = \"5m\"");
        assert_eq!(errors("ipvs", &sticky), "");
        // With a mark it is the firewall that knows the ports.
        for ports in ["1000-1999", "0"] {
            let marked = service(&format!("10.1.15.50:{ports}"), "fwmark = 4294967295");
            assert_eq!(errors("ipvs", &marked), "");
        }
    }

    #[test]
    fn marks() {
        let marked = |vip: &str, mark: &str| {
            format!(
                "[[service]]\naddress = \"{vip}:80\"\nfwmark = {mark}\n[[service.backend]]\naddress = \"{}\"\n",
                if vip.starts_with('[') {
                    "2001:db8::45"
                } else {
                    "10.1.15.45"
                }
            )
        };
        for (own, whose) in [
            (lb_common::probe::MARK, "health checks have"),
            (lb_common::slow::MARK, "the slow path has"),
        ] {
            let message = errors("ipvs", &(web("") + &format!("fwmark = {}", own + 1)));
            let expected = format!("is one of those that {whose}");
            assert!(message.contains(&expected), "{message}");
        }
        for mark in ["0", "4294967296", "-1"] {
            let message = errors("ipvs", &(web("") + &format!("fwmark = {mark}")));
            assert!(message.contains("`fwmark` is"), "{message}");
        }
        let twice = marked("10.1.15.51", "7") + &web("fwmark = 7");
        let message = errors("ipvs", &twice);
        assert!(
            message.contains("service TCP 10.1.15.51:80 has `fwmark` 7 already"),
            "{message}"
        );
        // A mark that is none is nobody else's.
        let twice = marked("10.1.15.51", "0") + &web("fwmark = 1");
        let message = errors("ipvs", &twice);
        assert!(message.contains("`fwmark` is 0"), "{message}");
        assert!(!message.contains("already"), "{message}");
        // One mark may stand for packets of both versions of IP.
        let both = marked("[2001:db8::51]", "7") + &web("fwmark = 7");
        assert_eq!(errors("ipvs", &both), "");
    }

    #[test]
    fn what_nothing_has() {
        let both = "[[service]]\naddress = \"10.1.15.50:1000-1999\"\nforward = \"nat\"";
        let message = errors("auto", both);
        assert!(message.contains("no data plane has together"), "{message}");
        let message = errors("auto", &web("one_packet = true"));
        assert!(message.contains("is for protocol \"udp\""), "{message}");
        let message = errors("both", &web(""));
        assert!(message.contains("`mode` cannot be \"both\""), "{message}");
    }

    #[test]
    fn sync_daemons() {
        let instance = "[[vrrp]]\nname = \"VI_1\"\ninterface = \"eth0\"\nvirtual_router_id = 1\naddresses = [\"10.1.15.50/32\"]\n";
        let with = |mode: &str, keys: &str| {
            let text = format!("[lvs_sync_daemon]\n{keys}\n{instance}{}", web(""));
            errors(mode, &text)
        };
        let good = "interface = \"eth1\"\nvrrp = \"VI_1\"\nid = 7\ngroup = \"224.0.0.82\"";
        assert_eq!(with("ipvs", good), "");
        assert_eq!(with("auto", good), "");
        for (mode, keys, word) in [
            ("xdp", good, "needs IPVS"),
            ("ipvs", "interface = \"eth1\"", "needs `vrrp`"),
            (
                "ipvs",
                "interface = \"eth1\"\nvrrp = \"VI_2\"",
                "there is no VRRP instance `VI_2`",
            ),
            (
                "ipvs",
                &format!("{good}\nid = 256").replace("id = 7\n", ""),
                "`id` is 256",
            ),
            (
                "ipvs",
                &good.replace("224.0.0.82", "10.0.0.1"),
                "10.0.0.1 is not a multicast address",
            ),
        ] {
            let message = with(mode, keys);
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn ports_of_real_servers() {
        let server = |keys: &str, address: &str| {
            web(&format!(
                "{keys}\n[[service.backend]]\naddress = \"{address}\""
            ))
        };
        let nat = "forward = \"nat\"";
        assert_eq!(errors("ipvs", &server(nat, "10.1.15.46:8080")), "");
        let message = errors("ipvs", &server("", "10.1.15.46:8080"));
        assert!(message.contains("port 8080 differs"), "{message}");
        let message = errors("ipvs", &server(nat, "2001:db8::46"));
        assert!(
            message.contains("is not of the VIP's version of IP"),
            "{message}"
        );
    }
}
