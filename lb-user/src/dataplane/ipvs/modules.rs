//! Kernel modules of schedulers, which are loaded before they are needed in a hurry.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Release of the running kernel.
const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// What became of the attempts, one for each scheduler.
#[derive(Debug, Default)]
pub struct Modules {
    /// By scheduler, why there is none.
    tried: HashMap<String, Option<String>>,
}

impl Modules {
    /// Loads what this scheduler needs, unless that was tried before.
    pub fn load(&mut self, scheduler: &str) {
        if !self.tried.contains_key(scheduler) {
            self.tried
                .insert(scheduler.to_owned(), modprobe(&module(scheduler)));
        }
    }

    /// What is missing for this scheduler, and what to do; nothing where it is there, or nobody can tell.
    pub fn missing(&self, scheduler: &str) -> Option<String> {
        let why = self.tried.get(scheduler)?.as_ref()?;
        let module = module(scheduler);
        // Somebody may have loaded it since.
        (!Path::new("/sys/module").join(&module).exists()).then(|| {
            format!(
                "module {module} of scheduler `{scheduler}` cannot be loaded ({why}); make `modprobe {module}` work, \
                 or choose another `scheduler`"
            )
        })
    }
}

fn module(scheduler: &str) -> String {
    format!("ip_vs_{scheduler}")
}

/// Why a module is not there. What is built in counts as loaded.
fn modprobe(module: &str) -> Option<String> {
    let mut program = Command::new("modprobe");
    let tried = program.arg(module).stdin(Stdio::null()).output().ok()?;
    // In a container that list may be missing, and the kernel finds the module all the same.
    if tried.status.success() || !has_list() {
        return None;
    }
    let said = String::from_utf8_lossy(&tried.stderr);
    let said = said.lines().rfind(|line| !line.trim().is_empty());
    Some(said.map_or_else(|| tried.status.to_string(), |line| line.trim().to_owned()))
}

/// Whether there is a list of the modules of the running kernel.
fn has_list() -> bool {
    fs::read_to_string(RELEASE).is_ok_and(|release| {
        let modules = Path::new("/lib/modules").join(release.trim());
        modules.join("modules.dep").exists() || modules.join("modules.dep.bin").exists()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_told_until_it_is_there() {
        let why = || Some("FATAL: not found".to_owned());
        let mut modules = Modules::default();
        assert_eq!(modules.missing("mh"), None, "nobody has tried");
        modules.tried.insert("of_nobody".to_owned(), why());
        modules.tried.insert("wrr".to_owned(), None);
        assert_eq!(modules.missing("wrr"), None);
        let text = modules.missing("of_nobody").unwrap();
        assert!(text.starts_with(
            "module ip_vs_of_nobody of scheduler `of_nobody` cannot be loaded (FATAL: not found)"
        ));
        // It is not tried again.
        modules.load("wrr");
        assert_eq!(modules.tried.len(), 2);
    }
}
