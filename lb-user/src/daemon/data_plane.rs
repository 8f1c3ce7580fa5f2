//! Which data plane forwards: what happens to it by itself, and what operators order.

use super::Daemon;
use crate::{
    api::proto::{DataPlaneOrder, Failure, Steered},
    dataplane::switching::{Kind, Order},
    events::Kind as Of,
};

impl Daemon {
    /// Looks whether the data plane still runs, and tells what became of it.
    pub(super) fn watch_data_plane(&mut self) {
        let settling = self.data_plane.is_settling();
        let mut any = false;
        while let Some(news) = self.data_plane.watch() {
            any = true;
            if self.data_plane.forwarding() == Kind::Ipvs {
                // The guard is for the time before. All else has time.
                self.firewall.unguard();
            }
            if news.is_bad {
                tracing::error!("{}", news.text);
            } else {
                tracing::warn!("{}", news.text);
            }
            self.event(Of::DataPlane, "", news.text);
        }
        if any {
            self.after_switch();
        } else if settling != self.data_plane.is_settling()
            || self.leads_to_ipvs != self.data_plane.has_slow_path()
        {
            self.follow_accept_mode();
        }
    }

    /// Whatever depends on which one forwards.
    fn after_switch(&mut self) {
        self.follow_accept_mode();
        let reason = self.data_plane.reason().to_owned();
        self.apply_or_stay(&reason);
    }

    pub(super) fn order_data_plane(&mut self, order: &DataPlaneOrder) -> Result<Steered, Failure> {
        let wanted = match order {
            DataPlaneOrder::Auto => Order::Auto,
            DataPlaneOrder::Xdp => Order::Only(Kind::Xdp),
            DataPlaneOrder::Ipvs => Order::Only(Kind::Ipvs),
        };
        let result = self.data_plane.order(wanted);
        self.watch_data_plane();
        let change = result.map_err(|error| Failure {
            error,
            invalid_config: false,
        })?;
        self.follow_accept_mode();
        let change = format!("data plane: {change}");
        tracing::info!("operator: {change}");
        self.event(Of::Operator, "data plane", change.clone());
        Ok(Steered {
            changes: vec![change],
        })
    }

    /// A reload ends what an operator ordered.
    pub(super) fn forget_data_plane_order(&mut self) {
        if self.data_plane.is_ordered() && self.data_plane.order(Order::Auto).is_ok() {
            self.watch_data_plane();
            self.follow_accept_mode();
        }
    }
}
