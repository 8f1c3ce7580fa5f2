//! Which data plane, and whether it can do what services want.

use std::ops::Range;

use super::Validator;
use crate::{
    config::{raw::RawDataplane, reader::At},
    model::{Mode, Protocol, VirtualService, ipvs_lacks, xdp_lacks},
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
        let in_xdp = xdp_lacks(service.scheduler, service.forwarding, service.one_packet);
        let in_ipvs = ipvs_lacks(&service.id, service.persistence);
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
            ("protocol = \"udp\"\none_packet = true", "no `one_packet`"),
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
