//! Interfaces of virtual MAC addresses: macvlans upon the interface that speaks VRRP.

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, MacVlanMode};
use rtnetlink::{LinkMacVlan, LinkMessageBuilder, LinkUnspec};

use super::{
    asking::{ask, gone, list},
    netlink::{Netlink, NetlinkError},
    placing::MARK,
};

/// The group (`ip link show group 112`) of interfaces that lbd made, the same number as of routes.
/// Unlike an alias it can be given together with the name.
pub const GROUP: u32 = MARK as u32;

/// A macvlan that lbd, or an lbd before it, made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macvlan {
    /// Interface index.
    pub ifindex: u32,
    /// Interface name.
    pub name: String,
    /// The interface below.
    pub below: Option<u32>,
    /// MAC address.
    pub mac: [u8; 6],
    /// What was written on it.
    pub alias: String,
}

impl Netlink {
    /// Makes a macvlan upon `below`, down. Mode "bridge": in private mode, keepalived's, frames that
    /// come from its own MAC address, another master's, reach nobody but the macvlan.
    pub async fn add_macvlan(
        &self,
        name: &str,
        below: u32,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        let message = LinkMacVlan::new(name, below, MacVlanMode::Bridge)
            .address(mac.to_vec())
            .append_extra_attribute(LinkAttribute::Group(GROUP))
            .build();
        let request = self.handle.link().add(message).execute();
        ask(&format!("make interface {name}"), request).await
    }

    /// Every macvlan of ours.
    pub async fn macvlans(&self) -> Result<Vec<Macvlan>, NetlinkError> {
        let links = self.handle.link().get().execute();
        list("list interfaces", links, ours).await
    }

    /// Turns an interface on or off.
    pub async fn set_link_up(&self, ifindex: u32, up: bool) -> Result<(), NetlinkError> {
        let link = LinkUnspec::new_with_index(ifindex);
        let link = if up { link.up() } else { link.down() };
        self.change(link, "turn an interface on or off").await
    }

    /// Writes something on an interface.
    pub async fn set_alias(&self, ifindex: u32, alias: &str) -> Result<(), NetlinkError> {
        let alias = LinkAttribute::IfAlias(alias.to_owned());
        let link = LinkUnspec::new_with_index(ifindex).append_extra_attribute(alias);
        self.change(link, "give an interface an alias").await
    }

    /// Removes an interface; that it is gone is fine.
    pub async fn delete_link(&self, ifindex: u32) -> Result<(), NetlinkError> {
        let request = self.handle.link().del(ifindex).execute();
        gone("remove an interface", request).await
    }

    async fn change(
        &self,
        link: LinkMessageBuilder<LinkUnspec>,
        what: &str,
    ) -> Result<(), NetlinkError> {
        ask(what, self.handle.link().change(link.build()).execute()).await
    }
}

fn ours(message: &LinkMessage) -> Option<Macvlan> {
    let mut found = Macvlan {
        ifindex: message.header.index,
        name: String::new(),
        below: None,
        mac: [0; 6],
        alias: String::new(),
    };
    let (mut is_macvlan, mut is_ours) = (false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Link(below) => found.below = Some(*below),
            LinkAttribute::Address(bytes) => {
                found.mac = <[u8; 6]>::try_from(bytes.as_slice()).unwrap_or_default();
            }
            LinkAttribute::IfAlias(alias) => found.alias.clone_from(alias),
            LinkAttribute::Group(group) => is_ours = *group == GROUP,
            LinkAttribute::LinkInfo(infos) => {
                is_macvlan = infos.contains(&LinkInfo::Kind(InfoKind::MacVlan));
            }
            _ => {}
        }
    }
    (is_macvlan && is_ours).then_some(found)
}
