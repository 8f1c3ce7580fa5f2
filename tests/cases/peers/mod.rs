//! Elections with routers that nobody here wrote, each in both roles. Every dialect of the table goes through
//! everything that can happen to a pair ([`pair`]), and nobody may find fault with the other's adverts: lbd counts
//! nothing that it did not believe, the peer's own counters of errors are zero, and its log, which FRR has to be
//! asked for, has no complaint.
//!
//! | | keepalived 2.2.7 | FRR 8.4.4 |
//! |---|---|---|
//! | version 2 | none, PASS, AH, to peers with PASS, sync group | none |
//! | version 3, IPv4, below a second | to the group, to peers, virtual MAC address | to the group |
//! | version 3, IPv6, below a second | to the group, to peers | to the group |
//!
//! The groups of tests run beside each other: their time is mostly waiting.

mod frr;
mod keepalived;
mod pair;

use std::time::Duration;

use self::pair::Pair;

/// What one pair speaks.
#[derive(Clone, Copy)]
struct Dialect {
    name: &'static str,
    /// Lines of lbd's instances.
    ours: &'static str,
    /// Virtual addresses, in advert order.
    addresses: &'static [&'static str],
    /// A second instance with this address, in one sync group with the first.
    second: Option<&'static str>,
    interval: Duration,
    /// The peer, and what it has in its configuration.
    theirs: Theirs,
    /// What the peer finds fault with before it has spoken itself.
    settling: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum Theirs {
    /// Lines of `global_defs` and of the instances.
    Keepalived(&'static str, &'static str),
    /// Lines of the router.
    Frr(&'static [&'static str]),
}

const VERSION_2: Dialect = Dialect {
    name: "version 2",
    ours: "",
    addresses: &["10.1.15.50/16"],
    second: None,
    interval: Duration::from_secs(1),
    theirs: Theirs::Keepalived("", "  advert_int 1"),
    settling: None,
};

const VERSION_3: Dialect = Dialect {
    name: "version 3",
    ours: "version = 3\nadvert_interval = \"250ms\"\nchecksum = \"pseudo-header\"\n",
    interval: Duration::from_millis(250),
    theirs: Theirs::Keepalived("  vrrp_version 3", "  advert_int 0.25"),
    ..VERSION_2
};

const FRR_VERSION_3: Theirs =
    Theirs::Frr(&["version 3", "ip 10.1.15.50", "advertisement-interval 250"]);

/// All at the same time; a failure of one does not end the others.
fn together(dialects: &[Dialect]) {
    std::thread::scope(|scope| {
        let all: Vec<_> = dialects
            .iter()
            .map(|dialect| (dialect.name, scope.spawn(|| Pair::live_through(dialect))))
            .collect();
        let ended = all.into_iter().map(|(name, thread)| (name, thread.join()));
        let failed: Vec<&str> = ended
            .filter(|(_, result)| result.is_err())
            .map(|(name, _)| name)
            .collect();
        assert!(failed.is_empty(), "{failed:?}: see above");
    });
}

#[test]
fn keepalived_version_2() {
    together(&[
        VERSION_2,
        Dialect {
            name: "version 2 with PASS",
            ours: "password = \"secret\"\n",
            theirs: Theirs::Keepalived(
                "",
                "  advert_int 1\n  authentication {\n    auth_type PASS\n    auth_pass secret\n  }",
            ),
            ..VERSION_2
        },
        Dialect {
            name: "version 2 with AH",
            ours: "authentication = \"ah\"\npassword = \"6b8a916c\"\n",
            theirs: Theirs::Keepalived(
                "",
                "  advert_int 1\n  authentication {\n    auth_type AH\n    auth_pass 6b8a916c\n  }",
            ),
            ..VERSION_2
        },
        Dialect {
            name: "version 2 to peers",
            ours: "unicast_peers = [\"10.1.15.44\"]\npassword = \"secret\"\n",
            addresses: &["10.1.15.50/16", "10.1.15.51/16"],
            theirs: Theirs::Keepalived(
                "",
                "  advert_int 1\n  unicast_src_ip 10.1.15.44\n  unicast_peer {\n    10.1.15.43\n  }\n  \
                 authentication {\n    auth_type PASS\n    auth_pass secret\n  }",
            ),
            ..VERSION_2
        },
        Dialect {
            name: "version 2 in a sync group",
            second: Some("10.1.15.60/16"),
            ..VERSION_2
        },
    ]);
}

#[test]
fn keepalived_version_3() {
    together(&[
        VERSION_3,
        Dialect {
            name: "version 3 to peers",
            ours: "version = 3\nadvert_interval = \"250ms\"\nunicast_peers = [\"10.1.15.44\"]\n",
            theirs: Theirs::Keepalived(
                "  vrrp_version 3",
                "  advert_int 0.25\n  unicast_src_ip 10.1.15.44\n  unicast_peer {\n    10.1.15.43\n  }",
            ),
            ..VERSION_3
        },
        Dialect {
            name: "version 3 with virtual MAC addresses",
            ours: "version = 3\nadvert_interval = \"250ms\"\nchecksum = \"pseudo-header\"\nuse_virtual_mac = true\n",
            theirs: Theirs::Keepalived("  vrrp_version 3", "  advert_int 0.25\n  use_vmac"),
            ..VERSION_3
        },
        Dialect {
            name: "version 3 over IPv6",
            ours: "advert_interval = \"250ms\"\n",
            addresses: &["fe80::50/64", "2001:db8::50/64"],
            ..VERSION_3
        },
        Dialect {
            name: "version 3 over IPv6 to peers",
            ours: "advert_interval = \"250ms\"\nunicast_peers = [\"2001:db8::44\"]\nsource_address = \"2001:db8::43\"\n",
            addresses: &["2001:db8::50/64"],
            theirs: Theirs::Keepalived(
                "  vrrp_version 3",
                "  advert_int 0.25\n  unicast_src_ip 2001:db8::44\n  unicast_peer {\n    2001:db8::43\n  }",
            ),
            ..VERSION_3
        },
    ]);
}

#[test]
fn frr() {
    together(&[
        Dialect {
            name: "FRR, version 2",
            theirs: Theirs::Frr(&["version 2", "ip 10.1.15.50"]),
            ..VERSION_2
        },
        Dialect {
            name: "FRR, version 3",
            theirs: FRR_VERSION_3,
            ..VERSION_3
        },
        Dialect {
            name: "FRR, version 3, as the peer does",
            ours: "version = 3\nadvert_interval = \"250ms\"\n",
            theirs: FRR_VERSION_3,
            // Alone, lbd speaks as RFC 9568 demands.
            settling: Some("Bad VRRP checksum"),
            ..VERSION_3
        },
        Dialect {
            name: "FRR, version 3 over IPv6",
            ours: "advert_interval = \"250ms\"\n",
            // FRR's own link-local address is not among them.
            addresses: &["2001:db8::50/64"],
            theirs: Theirs::Frr(&[
                "version 3",
                "ipv6 2001:db8::50",
                "advertisement-interval 250",
            ]),
            ..VERSION_3
        },
    ]);
}
