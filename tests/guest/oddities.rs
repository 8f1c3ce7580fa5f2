//! Services of every kind beside those of others: what is ours is shown as ipvsadm shows it and comes back
//! however it was changed, and what is not ours stays as it is.

use std::time::{Duration, Instant};

use lab::{Director, Lab, Node, network::INTERFACE, wait};

use crate::{cluster::same_views, with_modules};

/// Whatever ipvsadm can make. Two have an address of ours, with another protocol.
const FOREIGN: [&str; 20] = [
    "-A -t 10.1.15.60:80 -s sh -b sh-fallback,sh-port",
    "-a -t 10.1.15.60:80 -r 10.1.15.61 -i -w 1 --tun-type gue --tun-port 6635 --tun-remcsum",
    "-a -t 10.1.15.60:80 -r 10.1.15.62 -i -w 2 --tun-type gre --tun-csum",
    "-a -t 10.1.15.60:80 -r 10.1.15.63 -i -w 3 --tun-type ipip",
    "-a -t 10.1.15.60:80 -r [2001:db8::64]:80 -i -w 0",
    "-a -t 10.1.15.60:80 -r 10.1.15.65:8080 -m -w 65535 -x 10 -y 5",
    "-a -t 10.1.15.60:80 -r 127.0.0.1 -g",
    "-A -u 10.1.15.50:80 -s rr",
    "-a -u 10.1.15.50:80 -r 10.1.15.45:80 -g",
    "-A --sctp-service [2001:db8::50]:81 -s rr",
    "-A -f 9 -6 -s wlc -p 300 -M 48",
    "-a -f 9 -6 -r [2001:db8::61]:0 -g",
    "-A -f 9 -s lblcr -p 60 -M 255.255.0.0",
    "-A -u 10.1.15.60:5060 -s mh -b mh-port,mh-fallback -p 60 --pe sip",
    "-a -u 10.1.15.60:5060 -r 10.1.15.61:5060 -m",
    "-A -t 10.1.15.60:0 -s lblc -p 7",
    "-A -u [2001:db8::60]:53 -s ovf -o",
    "-a -u [2001:db8::60]:53 -r [2001:db8::61]:53 -m",
    "-A -t [2001:db8::60]:80 -s rr -b flag-3",
    "-A -t 10.1.15.60:443 -s sed",
];

/// Services of every kind.
fn config() -> String {
    let mut text = format!(
        "[dataplane]\nmode = \"ipvs\"\ninterfaces = [\"{INTERFACE}\"]\nudp_timeout = \"200s\"\n"
    );
    let mut add = |address: &str, keys: &str, servers: &[(&str, &str)]| {
        text += &format!("[[service]]\naddress = \"{address}\"\n{keys}\n");
        for (server, more) in servers {
            text += &format!("[[service.backend]]\naddress = \"{server}\"\n{more}\n");
        }
    };
    add(
        "10.1.15.50:80",
        "",
        &[
            (
                "10.1.15.45",
                "weight = 3\nupper_threshold = 100\nlower_threshold = 50",
            ),
            ("10.1.15.46", "weight = 0"),
        ],
    );
    add(
        "[2001:db8::50]:80",
        "scheduler = \"mh\"\nscheduler_flags = [\"mh-port\", \"mh-fallback\"]\npersistence_timeout = \"6m\"\npersistence_prefix = 64",
        &[("2001:db8::45", ""), ("2001:db8::46", "weight = 65535")],
    );
    add(
        "[2001:db8::50]:81",
        "protocol = \"udp\"\nscheduler = \"lblc\"\none_packet = true",
        &[("2001:db8::45", "")],
    );
    add(
        "10.1.15.54:5060",
        "protocol = \"udp\"\nscheduler = \"rr\"\npersistence_timeout = \"1m\"\npersistence_prefix = 24\npersistence_engine = \"sip\"",
        &[("10.1.15.45", "")],
    );
    add(
        "10.1.15.50:0",
        "fwmark = 7\nscheduler = \"rr\"\npersistence_timeout = \"1m\"\npersistence_prefix = 0",
        &[("10.1.15.45", "")],
    );
    add(
        "[2001:db8::50]:0",
        "fwmark = 7\nscheduler = \"nq\"",
        &[("2001:db8::45", "")],
    );
    add(
        "10.1.15.50:9000",
        "protocol = \"sctp\"\nscheduler = \"sh\"\nscheduler_flags = [\"sh-port\"]\nforward = \"tunnel\"",
        &[("10.1.15.45", ""), ("2001:db8::45", "")],
    );
    add(
        "10.1.15.55:80",
        "forward = \"tunnel\"\ntunnel_type = \"gue\"\ntunnel_port = 6080\ntunnel_checksum = \"remcsum\"",
        &[("10.1.15.45", "")],
    );
    add(
        "10.1.15.51:0",
        "scheduler = \"dh\"\npersistence_timeout = \"5m\"\npersistence_prefix = 24",
        &[("10.1.15.45", "")],
    );
    add(
        "10.1.15.52:80",
        "scheduler = \"sed\"\nforward = \"nat\"",
        &[("10.1.15.45:8080", ""), ("10.1.15.46:8081", "weight = 2")],
    );
    add(
        "10.1.15.53:80",
        "sorry_server = \"10.1.15.47\"",
        &[("10.1.15.45", "weight = 0")],
    );
    text
}

/// Everything that ipvsadm tells of the services that are not ours.
fn foreign(node: &Node) -> String {
    let name = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("-a") || line.starts_with("-A"))
            .then(|| words.by_ref().take(2).collect::<Vec<_>>().join(" "))
    };
    let names: Vec<String> = FOREIGN.iter().filter_map(|line| name(line)).collect();
    let saved = node.run("ipvsadm", &["-Sn"]).unwrap();
    let mut lines: Vec<&str> = saved
        .lines()
        .filter(|line| name(line).is_some_and(|name| names.contains(&name)))
        .collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Ways to change what is ours.
const CHANGES: [&str; 24] = [
    "-E -t 10.1.15.50:80 -s rr",
    "-E -t 10.1.15.50:80 -s wrr -p 30",
    "-E -t [2001:db8::50]:80 -s mh -b mh-port -p 360 -M 64",
    "-E -t [2001:db8::50]:80 -s mh -b mh-port,mh-fallback -p 100 -M 64",
    "-E -t [2001:db8::50]:80 -s mh -b mh-port,mh-fallback -p 360 -M 48",
    "-E -f 7 -s lc -p 60 -M 0.0.0.0",
    "-E -f 7 -6 -s nq -o",
    "-E -u [2001:db8::50]:81 -s lblc -o --pe sip -p 300",
    "-E -u 10.1.15.54:5060 -s rr -p 60 -M 255.255.255.0",
    "-e -t 10.1.15.50:80 -r 10.1.15.45:80 -g -w 9 -x 100 -y 50",
    "-e -t 10.1.15.50:80 -r 10.1.15.45:80 -g -w 3 -x 100 -y 49",
    "-e -t 10.1.15.50:80 -r 10.1.15.45:80 -i -w 3 -x 100 -y 50",
    "-e -t 10.1.15.50:80 -r 10.1.15.46:80 -g -w 1",
    "-e --sctp-service 10.1.15.50:9000 -r 10.1.15.45:9000 -i -w 1 --tun-type gue --tun-port 6635",
    "-e -t 10.1.15.55:80 -r 10.1.15.45:80 -i -w 1 --tun-type gue --tun-port 6081 --tun-remcsum",
    "-e -t 10.1.15.55:80 -r 10.1.15.45:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-csum",
    "-e -t 10.1.15.55:80 -r 10.1.15.45:80 -i -w 1 --tun-type ipip",
    "-d -t 10.1.15.52:80 -r 10.1.15.45:8080",
    "-a -t 10.1.15.52:80 -r 10.1.15.45:80 -m",
    "-a -t 10.1.15.52:80 -r 10.1.15.49:80 -i",
    "-D -t 10.1.15.53:80",
    "-D -f 7 -6",
    "--set 800 0 0",
    "-C",
];

#[test]
fn ours_is_mended_and_theirs_left_alone() {
    let _modules = with_modules();
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    node.ip(&[
        "-6",
        "address",
        "add",
        "2001:db8::43/64",
        "dev",
        INTERFACE,
        "nodad",
    ])
    .unwrap();
    for address in [
        "10.1.15.45",
        "10.1.15.46",
        "10.1.15.47",
        "2001:db8::45",
        "2001:db8::46",
    ] {
        let mac = ["lladdr", "02:00:00:00:00:45", "nud", "permanent"];
        let neighbour = ["neighbour", "add", address, "dev", INTERFACE];
        node.ip(&[&neighbour[..], &mac].concat()).unwrap();
    }
    let ipvsadm = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        node.run("ipvsadm", &words)
    };
    let make_foreign = || {
        for line in FOREIGN {
            ipvsadm(line).unwrap_or_else(|error| panic!("{line}: {error:?}"));
        }
    };
    make_foreign();
    let theirs = foreign(&node);
    assert_eq!(theirs.lines().count(), FOREIGN.len());
    let mut lbd = Director::new(&lab, &node, &config()).unwrap();
    lbd.start(&lab).unwrap();
    wait::until_true("servers are up", Duration::from_secs(30), || {
        Ok(node
            .run("ipvsadm", &["-Sn"])?
            .contains("10.1.15.46:8081 -m -w 2"))
    })
    .unwrap();
    // More than one second look.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(foreign(&node), theirs);
    let table = || {
        let mut lines: Vec<String> = node
            .run("ipvsadm", &["-Sn"])
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort_unstable();
        (lines, ipvsadm("-L --timeout").unwrap())
    };
    let good = table();
    // What a second look finds is nothing.
    let told = || lbd.status().unwrap().data_plane.repairs.count;
    assert_eq!(told(), 0);
    let mut failed = Vec::new();
    for line in CHANGES {
        let before = told();
        if let Err(error) = ipvsadm(line) {
            failed.push(format!("{line}: {error:?}"));
            continue;
        }
        let begin = Instant::now();
        if line == "-C" {
            make_foreign();
        }
        let mended = wait::until_true("it is mended", Duration::from_secs(20), || {
            Ok(table() == good)
        });
        println!("{line}: {:?}", begin.elapsed());
        if mended.is_err() {
            failed.push(format!("{line}: {:?}", table()));
        }
        // What was done is counted after it was done.
        let counted =
            wait::until_true(
                "it is told",
                Duration::from_secs(10),
                || Ok(told() > before),
            );
        if counted.is_err() {
            failed.push(format!("{line}: not told"));
        }
    }
    // Views: those of others are not shown.
    for line in FOREIGN.iter().filter(|line| line.starts_with("-A")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut delete = vec!["-D", words[1], words[2]];
        delete.extend(words.iter().find(|word| **word == "-6"));
        node.run("ipvsadm", &delete).unwrap();
    }
    let views = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| same_views(&lbd)));
    if views.is_err() {
        failed.push("views".to_owned());
    }
    let events = lbd.ctl(&["events"]).unwrap();
    for words in [
        "somebody else changed IPVS, and this was done to mend it: change service TCP 10.1.15.50:80 wrr",
        "things were done to mend it, the last one: add real server 10.1.15.47:80 of weight 1 to TCP 10.1.15.53:80",
    ] {
        assert!(events.contains(words), "{events}");
    }
    make_foreign();
    lbd.stop().unwrap();
    assert_eq!(foreign(&node), theirs);
    let left = node.run("ipvsadm", &["-Sn"]).unwrap();
    assert_eq!(left.lines().count(), FOREIGN.len(), "{left}");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
