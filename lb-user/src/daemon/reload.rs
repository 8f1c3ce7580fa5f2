//! A new configuration for a running daemon: all of it, or none.

use super::{Daemon, DaemonError, load_config, require_interfaces};
use crate::{
    api::proto::{Failure, Reload},
    config::{changes, needs_restart},
};

impl Daemon {
    pub(super) async fn on_hangup(&mut self) {
        match self.reload(false).await {
            Ok(reload) if reload.changes.is_empty() => {
                tracing::info!("reloaded: nothing has changed");
            }
            Ok(reload) => tracing::info!(changes = reload.changes.join("; "), "reloaded"),
            Err(error) => {
                tracing::error!("reload refused, the running configuration stays:\n{error}");
            }
        }
    }

    pub(super) async fn answer_reload(&mut self, dry_run: bool) -> Result<Reload, Failure> {
        self.reload(dry_run).await.map_err(|error| Failure {
            invalid_config: matches!(error, DaemonError::Config(_)),
            error: error.to_string(),
        })
    }

    async fn reload(&mut self, dry_run: bool) -> Result<Reload, DaemonError> {
        let mut config = load_config(&self.path)?;
        require_interfaces(&config, &self.interfaces)?;
        let waiting = needs_restart(&self.config, &config);
        let answer = Reload {
            changes: changes(&self.config, &config),
            needs_restart: waiting.iter().map(|s| (*s).to_owned()).collect(),
        };
        if dry_run {
            return Ok(answer);
        }
        for section in &waiting {
            tracing::warn!("changes of [{section}] wait for a restart");
        }
        config.runtime = self.config.runtime.clone();
        let timeouts = config.dataplane.timeouts;
        config.dataplane = self.config.dataplane.clone();
        config.dataplane.timeouts = timeouts;
        let before = std::mem::replace(&mut self.config, config);
        self.follow_instances();
        self.start_checks();
        self.data_plane
            .set_timeouts(&self.config.dataplane.timeouts);
        let reason = match answer.changes.as_slice() {
            [] => "reload".to_owned(),
            changes => format!("reload: {}", changes.join("; ")),
        };
        if let Err(error) = self.apply(&reason) {
            // The data plane still holds the old plan: go back to it everywhere.
            self.config = before;
            self.follow_instances();
            self.start_checks();
            return Err(error.into());
        }
        self.find_neighbours().await;
        let setups = self.setups();
        if let Some(vrrp) = &self.vrrp {
            vrrp.configure(setups).await;
        }
        for instance in self.config.instances.clone() {
            self.addresses.update(&instance, &self.interfaces).await;
        }
        Ok(answer)
    }
}
