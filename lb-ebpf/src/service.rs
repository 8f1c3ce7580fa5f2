//! Is this packet for a virtual service, and does this node serve it?

use lb_common::{Control, Reason, Service, ServiceKey, limits::MAX_ROLES};

use crate::{
    maps::SERVICES,
    parse::{ipv4::Ipv4, transport::Transport},
};

/// The service of the live generation that the packet is addressed to.
#[inline(always)]
pub fn look_up(
    control: &Control,
    ip: &Ipv4,
    transport: &Transport,
) -> Result<&'static Service, Reason> {
    let key = ServiceKey {
        address_be: ip.destination_be,
        port_be: transport.destination_port_be,
        protocol: ip.protocol,
        generation: control.live as u8,
    };
    // SAFETY: the daemon never deletes or changes entries of the live generation, and waits for a
    // grace period before it touches those of the one that was live before.
    let service = unsafe { SERVICES.get(key) }.ok_or(Reason::NotAService)?;
    let role = usize::from(service.role) & (MAX_ROLES - 1);
    if control.roles[role] == 0 {
        return Err(Reason::NotMaster);
    }
    Ok(service)
}
