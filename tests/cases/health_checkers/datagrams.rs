//! DNS against dnsmasq, UDP against socat, echo against the kernel.

use std::time::Duration;

use lab::{Process, servers, wait};

use crate::checked::{
    Checked,
    Expect::{self, Down, Up},
    SERVER_V6,
};

use super::{run, wait_for_port};

#[test]
fn dns() {
    let mut checked = Checked::prepare().unwrap();
    let part = "x".repeat(250);
    let long = format!("--txt-record=long.example.com,{part},{part},{part},{part}");
    let records = [
        "--local=/example.com/",
        "--host-record=www.example.com,192.0.2.1,2001:db8::1",
        "--host-record=www.example.com,192.0.2.2",
        "--mx-host=example.com,mail.example.com,10",
        "--txt-record=example.com,v=spf1 -all",
        "--srv-host=_sip._udp.example.com,sip.example.com,5060,1,5",
        "--cname=alias.example.com,www.example.com",
        "--ptr-record=9.2.0.192.in-addr.arpa,www.example.com",
        "--caa-record=example.com,0,issue,ca.example.net",
        "--naptr-record=example.com,100,10,u,E2U+sip,!^.*$!sip:a@example.com!",
        "--dns-rr=example.com,65,00:01:00:00:01:00:03:02:68:32",
        "--dns-rr=example.com,43,00:01:08:02:aa:bb:cc",
        "--dns-rr=example.com,48,01:00:03:08:aa:bb:cc:dd",
        "--dns-rr=_443._tcp.example.com,52,03:01:01:aa:bb:cc:dd",
        &long,
    ];
    let _dnsmasq = servers::dnsmasq(&checked.lab, &checked.server, &records).unwrap();
    wait_for_port(&checked, 53).unwrap();
    let rows: &[(&str, Expect)] = &[
        ("name = \"www.example.com\"", Up),
        (
            "name = \"www.example.com.\"\nexpect = [\"192.0.2.1\", \"192.0.2.2\"]",
            Up,
        ),
        (
            "name = \"www.example.com\"\nexpect = \"192.0.2.3\"",
            Down("instead of 192.0.2.3"),
        ),
        (
            "name = \"www.example.com\"\nrecord = \"AAAA\"\nexpect = \"2001:db8::1\"",
            Up,
        ),
        ("name = \"alias.example.com\"\nexpect = \"192.0.2.1\"", Up),
        (
            "name = \"alias.example.com\"\nrecord = \"CNAME\"\nexpect = \"www.example.com\"",
            Up,
        ),
        (
            "name = \"example.com\"\nrecord = \"MX\"\nexpect = \"10 mail.example.com\"",
            Up,
        ),
        (
            "name = \"example.com\"\nrecord = \"TXT\"\nexpect = \"v=spf1 -all\"",
            Up,
        ),
        (
            "name = \"_sip._udp.example.com\"\nrecord = \"SRV\"\nexpect = \"1 5 5060 sip.example.com\"",
            Up,
        ),
        (
            "name = \"9.2.0.192.in-addr.arpa\"\nrecord = \"PTR\"\nexpect = \"www.example.com.\"",
            Up,
        ),
        ("name = \"example.com\"\nrecord = \"CAA\"", Up),
        (
            "name = \"www.example.com\"\nrecord = \"AAAA\"\nexpect = \"2001:0db8:0::1\"",
            Up,
        ),
        (
            "name = \"example.com\"\nrecord = \"TXT\"\nexpect = '\"v=spf1 -all\"'",
            Up,
        ),
        (
            "name = \"example.com\"\nrecord = \"HTTPS\"\nexpect = '1 . alpn=\"h2\"'",
            Up,
        ),
        (
            "name = \"example.com\"\nrecord = \"DS\"\nexpect = \"1 8 2 AABBCC\"",
            Up,
        ),
        (
            "name = \"example.com\"\nrecord = \"DNSKEY\"\nexpect = \"256 3 8 qrvM3Q==\"",
            Up,
        ),
        (
            "name = \"_443._tcp.example.com\"\nrecord = \"TLSA\"\nexpect = \"3 1 1 AABBCCDD\"",
            Up,
        ),
        ("name = \"example.com\"\nrecord = \"NAPTR\"", Up),
        (
            "name = \"example.com\"\nrecord = \"A\"",
            Down("no record instead of at least one record"),
        ),
        ("name = \"none.example.com\"", Down("to none.example.com A")),
        (
            "name = \"www.example.net\"\nrecursion = false",
            Down("to www.example.net A"),
        ),
        // Too long for a datagram: asked again over TCP.
        ("name = \"long.example.com\"\nrecord = \"TXT\"", Up),
        (
            "name = \"www.example.com\"\nport = 54",
            Down("no DNS over UDP"),
        ),
        ("name = \"www.example.com\"\naddress = \"2001:db8::45\"", Up),
    ];
    let rows: Vec<(String, Expect)> = rows
        .iter()
        .map(|(check, expect)| {
            let port = if check.contains("port = ") {
                ""
            } else {
                "\nport = 53"
            };
            (format!("type = \"dns\"\n{check}{port}"), *expect)
        })
        .collect();
    let rows: Vec<(&str, Expect)> = rows.iter().map(|(c, e)| (c.as_str(), *e)).collect();
    run(&mut checked, &rows).unwrap();
}

#[test]
fn udp_and_icmp() {
    let mut checked = Checked::prepare().unwrap();
    let (lab, server) = (&checked.lab, &checked.server);
    let silent = ["-u", "UDP4-RECV:9", "OPEN:/dev/null"];
    let _servers = [
        servers::echo(lab, server, "echo", "UDP4-RECVFROM:7,fork").unwrap(),
        servers::echo(lab, server, "echo6", "UDP6-RECVFROM:7,ipv6only=1,fork").unwrap(),
        Process::start(lab, server, "silent", "/usr/bin/socat".as_ref(), &silent).unwrap(),
    ];
    wait::until_true("socat listens", Duration::from_secs(10), || {
        let sockets = checked.server.run("ss", &["-Hlun"])?;
        Ok(sockets.contains(":9 ") && sockets.matches(":7 ").count() == 2)
    })
    .unwrap();
    let rows: &[(&str, Expect)] = &[
        ("type = \"udp\"\nport = 7\npayload = \"616263\"", Up),
        (
            "type = \"udp\"\nport = 7\npayload = \"616263\"\nreply = \"61??6?\"",
            Up,
        ),
        (
            "type = \"udp\"\nport = 7\naddress = \"2001:db8::45\"\npayload = \"616263\"\nreply = \"61\"",
            Up,
        ),
        (
            "type = \"udp\"\nport = 7\npayload = \"616263\"\nreply = \"62\"\nanswer_timeout = \"300ms\"",
            Down("did not reply as expected within 300ms"),
        ),
        // Silence is success only where no reply is expected.
        (
            "type = \"udp\"\nport = 9\npayload = \"61\"\nanswer_timeout = \"200ms\"",
            Up,
        ),
        (
            "type = \"udp\"\nport = 9\npayload = \"61\"\nreply = \"61\"\nanswer_timeout = \"300ms\"",
            Down("did not reply"),
        ),
        (
            "type = \"udp\"\nport = 10\npayload = \"61\"",
            Down("Connection refused"),
        ),
        (
            "type = \"udp\"\nport = 10\naddress = \"2001:db8::45\"\npayload = \"61\"",
            Down("Connection refused"),
        ),
        // Nobody has this address, which the director's own kernel finds out.
        (
            "type = \"udp\"\nport = 10\naddress = \"10.1.15.99\"\npayload = \"61\"",
            Down("No route to host"),
        ),
        ("type = \"icmp\"", Up),
        ("type = \"icmp\"\nsource_address = \"10.1.15.43\"", Up),
        ("type = \"icmp\"\naddress = \"2001:db8::45\"", Up),
        (
            "type = \"icmp\"\naddress = \"10.1.15.99\"\nanswer_timeout = \"300ms\"",
            Down("10.1.15.99 did not reply to an echo request within 300ms"),
        ),
        (
            "type = \"icmp\"\naddress = \"2001:db8::99\"\nanswer_timeout = \"300ms\"",
            Down("did not reply"),
        ),
    ];
    assert_eq!(SERVER_V6, "2001:db8::45");
    run(&mut checked, rows).unwrap();
}
