//! A new configuration for a running daemon: all of it, or none.

use tokio::sync::mpsc::Receiver;

use super::{
    Daemon, DaemonError, load_config, names, require_interfaces, succession::Succession,
    tracking::Accounts,
};
use crate::{
    api::proto::{Failure, Reload},
    config::{changes, needs_restart},
    dataplane::DataPlane,
    model::{Auth, Config, VrrpState},
    vrrp::driver::Report,
};

/// Once, because operators expect more of a password than there is.
pub(super) fn warn_of_weak_authentication(config: &Config) {
    let weak: Vec<&str> = config
        .instances
        .iter()
        .filter(|instance| matches!(instance.auth, Auth::Pass(_) | Auth::Ah(_)))
        .map(|instance| instance.name.as_str())
        .collect();
    if !weak.is_empty() {
        tracing::warn!(
            instances = weak.join(", "),
            "VRRP passwords guard against mistakes, not against people: PASS travels in clear, and AH's MD5 \
             with eight bytes of key is soon guessed"
        );
    }
}

impl Daemon {
    pub(super) async fn on_hangup(&mut self, reports: &mut Receiver<Report>) {
        match self.reload(false, reports).await {
            Ok(reload) if reload.changes.is_empty() => {
                tracing::info!("reloaded: nothing has changed");
            }
            Ok(reload) => tracing::info!(changes = reload.changes.join("; "), "reloaded"),
            Err(error) => {
                tracing::error!("reload refused, the running configuration stays:\n{error}");
            }
        }
    }

    pub(super) async fn answer_reload(
        &mut self,
        dry_run: bool,
        reports: &mut Receiver<Report>,
    ) -> Result<Reload, Failure> {
        self.reload(dry_run, reports)
            .await
            .map_err(|error| Failure {
                invalid_config: matches!(
                    error,
                    DaemonError::Config(_)
                        | DaemonError::BadSource { .. }
                        | DaemonError::BadKey { .. }
                        | DaemonError::NoCertificates(_)
                        | DaemonError::TooManySources { .. }
                ),
                error: error.to_string(),
            })
    }

    async fn reload(
        &mut self,
        dry_run: bool,
        reports: &mut Receiver<Report>,
    ) -> Result<Reload, DaemonError> {
        let result = self.try_reload(dry_run, reports).await;
        if !dry_run {
            self.count_reload(&result);
            self.refused = result.as_ref().err().map(|error| {
                error
                    .to_string()
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            });
            self.waiting = result
                .as_ref()
                .map(|reload| reload.needs_restart.clone())
                .unwrap_or_default();
        }
        result
    }

    async fn try_reload(
        &mut self,
        dry_run: bool,
        reports: &mut Receiver<Report>,
    ) -> Result<Reload, DaemonError> {
        let mut config = load_config(&self.path)?;
        require_interfaces(&config, &self.interfaces)?;
        self.require_attached(&config)?;
        let accounts = Accounts::of(&config)?;
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
        config.metrics = self.config.metrics;
        let timeouts = config.dataplane.timeouts;
        let protection = std::mem::take(&mut config.dataplane.protection);
        config.dataplane = self.config.dataplane.clone();
        config.dataplane.timeouts = timeouts;
        config.dataplane.protection = protection;
        let reason = match answer.changes.as_slice() {
            [] => "reload".to_owned(),
            changes => format!("reload: {}", changes.join("; ")),
        };
        // The one step that can fail comes before anything is changed.
        let found = self.neighbours.find_paths(&config, &self.netlink).await;
        self.note_paths(&found);
        let succession = Succession::of(&self.config.instances, &config.instances);
        let mut roles = self.roles.clone();
        roles.rename(&succession);
        let freed = roles.follow(&names(&config));
        // What operators told of real servers holds until now.
        let steered = std::mem::take(&mut self.steered);
        let plan = self.plan(&config, &roles);
        let installed = self
            .data_plane
            .set_protection(&config.dataplane.protection)
            .and_then(|()| self.install(&plan, &reason));
        if let Err(error) = installed {
            self.steered = steered;
            return Err(error.into());
        }
        if config.instances != self.config.instances {
            warn_of_weak_authentication(&config);
        }
        let renamed = self.rename_instances(&succession);
        self.config = config;
        self.roles = roles;
        if let Some(notifier) = &mut self.notifier {
            notifier.configure(&self.config);
        }
        self.follow_instances(&freed);
        self.tracking.configure(&self.config, &accounts).await;
        self.start_checks();
        // Pools follow their new rules, and real servers that are new.
        self.apply_or_stay(&reason);
        self.data_plane.set_timeouts(&timeouts);
        self.find_neighbours().await;
        self.reconsider_checks();
        self.follow_vrrp(&succession, reports).await;
        self.tell_of_successors(&succession, renamed).await;
        self.forget_data_plane_order();
        Ok(answer)
    }

    /// Makes the VRRP thread run the new instances, and follows what becomes of them.
    async fn follow_vrrp(&mut self, succession: &Succession, reports: &mut Receiver<Report>) {
        // What only the configuration before needs goes last. What fails is told of, and tried again.
        let _ = self.make_virtual_macs(false).await;
        self.watch_routes();
        self.follow_accept_mode();
        let setups = self.setups();
        if let Some(vrrp) = &self.vrrp {
            vrrp.configure(setups).await;
        }
        // Masters that go on come first: an address that one of them has now is not taken away by one that ends.
        let instances = self.config.instances.iter();
        let running = instances.filter(|instance| succession.is_running(&instance.name));
        self.addresses.update(running, &self.interfaces).await;
        while let Ok(report) = reports.try_recv() {
            self.on_report(report).await;
        }
        self.end_what_is_gone().await;
        self.addresses.count_only(&self.config.instances);
        self.place_statics().await;
        self.follow_interfaces().await;
    }

    /// Ends instances whose report of their end was lost.
    async fn end_what_is_gone(&mut self) {
        let is_configured = |name: &String| self.config.instances.iter().any(|i| i.name == *name);
        let names = self.instances.keys().filter(|name| !is_configured(name));
        for name in names.cloned().collect::<Vec<_>>() {
            self.on_transition(&name, VrrpState::Init, "stopped", None, 0)
                .await;
            self.instances.remove(&name);
        }
    }

    /// The program is attached at the start only: an instance on another interface would hold
    /// addresses whose packets nobody forwards.
    fn require_attached(&mut self, config: &Config) -> Result<(), DaemonError> {
        if self.data_plane.snapshot().kind != "xdp" {
            return Ok(());
        }
        let running = &self.config.dataplane.interfaces;
        let wanted = &config.dataplane.interfaces;
        if wanted.iter().all(|interface| running.contains(interface)) {
            return Ok(());
        }
        Err(DaemonError::NeedsRestart {
            running: running.join(", "),
            wanted: wanted.join(", "),
        })
    }
}
