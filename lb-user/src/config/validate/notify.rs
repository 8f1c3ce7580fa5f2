//! Scripts, the FIFO and mail.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use lettre::message::Mailbox;

use super::{Validator, values::DAY};
use crate::{
    config::{
        raw::{
            Raw, RawRuntime,
            notify::{RawMail, RawScripts, RawSyncGroup},
        },
        reader::At,
    },
    model::{
        CaFile, Instance, Login, Mail, MailSubjects, MailTls, NotifyFifo, NotifyScripts, Password,
        SyncGroup, VirtualService,
    },
};

/// All of them get every mail.
const MAX_RECIPIENTS: usize = 32;

/// `mail = ...` of sync groups, by name.
pub(super) type GroupWishes = Vec<(String, Option<At<bool>>)>;

/// `mail = ...` of instances and services, before they are consumed.
pub(super) struct MailWishes {
    instances: Vec<(String, Option<At<bool>>)>,
    services: Vec<Option<At<bool>>>,
}

impl MailWishes {
    pub(super) fn of(raw: &Raw) -> Self {
        let name = |name: &Option<At<String>>| {
            name.as_ref().map(|at| at.value.clone()).unwrap_or_default()
        };
        Self {
            instances: raw
                .instances
                .iter()
                .map(|at| (name(&at.value.name), at.value.mail.clone()))
                .collect(),
            services: raw
                .services
                .iter()
                .map(|at| at.value.mail.clone())
                .collect(),
        }
    }
}

impl Validator<'_> {
    pub(super) fn scripts(&mut self, raw: RawScripts) -> NotifyScripts {
        NotifyScripts {
            master: raw.master.map(|at| at.value),
            backup: raw.backup.map(|at| at.value),
            fault: raw.fault.map(|at| at.value),
            stop: raw.stop.map(|at| at.value),
            any: raw.any.map(|at| at.value),
            timeout: self.duration(
                raw.timeout,
                "notify_timeout",
                Duration::from_millis(100)..=DAY,
                Duration::from_secs(30),
            ),
        }
    }

    pub(super) fn fifo(&mut self, raw: &mut RawRuntime) -> Option<NotifyFifo> {
        let script = raw.notify_fifo_script.take();
        if raw.notify_fifo.is_none() {
            if let Some(at) = script {
                self.error(
                    &at.span,
                    "`notify_fifo_script` without `notify_fifo`",
                    "name the FIFO that it reads, such as \"/run/lbd/notify.fifo\"",
                );
            }
            return None;
        }
        Some(NotifyFifo {
            path: self.path(raw.notify_fifo.take(), "notify_fifo", ""),
            reader: script.map(|at| at.value),
        })
    }

    /// The groups that instances name, with what their tables say of them.
    pub(super) fn sync_groups(
        &mut self,
        raw: Vec<At<RawSyncGroup>>,
        instances: &[Instance],
    ) -> (Vec<SyncGroup>, GroupWishes) {
        let mut groups: Vec<SyncGroup> = Vec::new();
        for instance in instances {
            let Some(name) = &instance.sync_group else {
                continue;
            };
            match groups.iter_mut().find(|group| group.name == *name) {
                Some(group) => group.members.push(instance.name.clone()),
                None => groups.push(SyncGroup {
                    name: name.clone(),
                    members: vec![instance.name.clone()],
                    notify: NotifyScripts::default(),
                }),
            }
        }
        let mut seen = HashSet::new();
        let mut wishes = Vec::new();
        for At { value: raw, span } in raw {
            let notify = self.scripts(raw.scripts);
            let Some(name) = raw.name else { continue };
            if !seen.insert(name.value.clone()) {
                let message = format!("duplicate [[sync_group]] `{}`", name.value);
                self.error(&span, message, "");
            }
            wishes.push((name.value.clone(), raw.mail));
            let known: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
            let known = known.join(", ");
            match groups.iter_mut().find(|group| group.name == name.value) {
                Some(group) => group.notify = notify,
                None => {
                    let help = match known.as_str() {
                        "" => "write `sync_group = \"...\"` into its instances".to_owned(),
                        known => format!("instances name: {known}"),
                    };
                    let message = format!("no instance is in the sync group `{}`", name.value);
                    self.error(&name.span, message, &help);
                }
            }
        }
        (groups, wishes)
    }

    /// How mail leaves, and of whom it tells: of all that do not say `mail = false`.
    pub(super) fn mail(
        &mut self,
        raw: Option<At<RawMail>>,
        host_name: &str,
        wishes: MailWishes,
        (groups, group_wishes): (&[SyncGroup], GroupWishes),
        services: &[VirtualService],
    ) -> Option<Mail> {
        let Some(At { value: raw, .. }) = raw else {
            let all = wishes.instances.into_iter().chain(group_wishes);
            let all = all.map(|(_, wish)| wish).chain(wishes.services);
            for wish in all.flatten().filter(|at| at.value) {
                let help = "say how mail leaves: [mail] with `server`, `from` and `to`";
                self.error(&wish.span, "`mail = true` without [mail]", help);
            }
            return None;
        };
        let is_wanted = |wish: &Option<At<bool>>| wish.as_ref().is_none_or(|at| at.value);
        let about = MailSubjects {
            instances: wishes
                .instances
                .into_iter()
                .filter(|(_, wish)| is_wanted(wish))
                .map(|(name, _)| name)
                .collect(),
            groups: groups
                .iter()
                .map(|group| &group.name)
                .filter(|name| {
                    let wish = group_wishes.iter().find(|(of, _)| of == *name);
                    wish.is_none_or(|(_, wish)| is_wanted(wish))
                })
                .cloned()
                .collect(),
            services: services
                .iter()
                .zip(&wishes.services)
                .filter(|(_, wish)| is_wanted(wish))
                .map(|(service, _)| service.id)
                .collect(),
        };
        Some(self.mail_server(raw, host_name, about))
    }

    fn mail_server(&mut self, raw: RawMail, host_name: &str, about: MailSubjects) -> Mail {
        let server = raw.server.map(|at| self.mail_host(at)).unwrap_or_default();
        let tls = self.choice(
            raw.tls,
            "tls",
            MailTls::StartTls,
            &[
                ("none", MailTls::None),
                ("starttls", MailTls::StartTls),
                ("tls", MailTls::Tls),
            ],
        );
        if let (Some(at), MailTls::None) = (&raw.ca_file, tls) {
            self.error(&at.span, "`ca_file` with `tls = \"none\"`", "");
        }
        let login = self.login(raw.user, raw.password, raw.password_file);
        let is_near =
            server == "localhost" || server.parse().is_ok_and(|a: IpAddr| a.is_loopback());
        if let (Some((_, span)), MailTls::None, false) = (&login, tls, is_near) {
            self.error(
                span,
                "the password would travel in clear",
                "use `tls = \"starttls\"` or \"tls\"; without encryption only a server on this host gets it",
            );
        }
        // RFC 5321, RFC 6409 and RFC 8314.
        let port = match tls {
            MailTls::None => 25,
            MailTls::StartTls => 587,
            MailTls::Tls => 465,
        };
        let port = self.number(raw.port, "port", 1..=65_535, port, |_, _| {});
        let recipients = raw.to.iter().flat_map(|list| &list.value);
        let to: Vec<Mailbox> = recipients.filter_map(|at| self.mailbox(at)).collect();
        if let Some(list) = &raw.to
            && !(1..=MAX_RECIPIENTS).contains(&list.value.len())
        {
            let message = format!("`to` must have 1 to {MAX_RECIPIENTS} entries");
            self.error(&list.span, message, "");
        }
        Mail {
            server,
            port: u16::try_from(port).unwrap_or_default(),
            hello: raw
                .hello
                .map_or_else(|| host_name.to_owned(), |at| self.mail_host(at)),
            from: raw
                .from
                .and_then(|at| self.mailbox(&at))
                .unwrap_or_else(nobody),
            to,
            tls,
            ca: raw.ca_file.map(|at| CaFile {
                path: self.path(Some(at), "ca_file", ""),
                text: String::new(),
            }),
            login: login.map(|(login, _)| login),
            timeout: self.duration(
                raw.timeout,
                "timeout",
                Duration::from_secs(1)..=Duration::from_secs(300),
                Duration::from_secs(30),
            ),
            faults: raw.faults.is_none_or(|at| at.value),
            about,
        }
    }

    fn login(
        &mut self,
        user: Option<At<String>>,
        password: Option<At<String>>,
        file: Option<At<String>>,
    ) -> Option<(Login, std::ops::Range<usize>)> {
        let Some(user) = user else {
            if let Some(at) = password.or(file) {
                self.error(&at.span, "a password without `user`", "");
            }
            return None;
        };
        if password.is_some() == file.is_some() {
            let message = "`user` needs one `password` or one `password_file`";
            self.error(&user.span, message, "");
        }
        let login = Login {
            user: user.value,
            password: Password(password.map(|at| at.value).unwrap_or_default()),
            file: file.map(|at| self.path(Some(at), "password_file", "")),
        };
        Some((login, user.span))
    }

    /// A name of the DNS, or an address.
    fn mail_host(&mut self, at: At<String>) -> String {
        let odd = |c: char| !c.is_ascii_alphanumeric() && !".-_:".contains(c);
        if at.value.is_empty() || at.value.len() > 253 || at.value.contains(odd) {
            let message = format!("`{}` is neither a host name nor an address", at.value);
            self.error(
                &at.span,
                message,
                "such as \"mail.example.net\" or \"10.1.15.9\"",
            );
        }
        at.value
    }

    fn mailbox(&mut self, at: &At<String>) -> Option<Mailbox> {
        // Addresses beyond ASCII need an extension that not every server has (RFC 6531).
        let parsed = at.value.parse::<Mailbox>().ok();
        let parsed = parsed.filter(|_| at.value.is_ascii());
        if parsed.is_none() {
            let message = format!("`{}` is not a mail address", at.value);
            self.error(&at.span, message, "such as \"ops@example.net\", in ASCII");
        }
        parsed
    }
}

/// Stands where a diagnostic discards the result anyway.
fn nobody() -> Mailbox {
    Mailbox::new(None, lettre::Address::new_dangerous("nobody", "localhost"))
}

#[cfg(test)]
mod tests {
    use crate::{config::parse, model::MailTls};

    const INSTANCES: &str = r#"
[[vrrp]]
name = "VI_1"
interface = "eth0"
virtual_router_id = 20
addresses = ["10.1.15.50/16"]
sync_group = "VG_1"
[[vrrp]]
name = "VI_2"
interface = "eth0"
virtual_router_id = 21
addresses = ["10.1.15.51/16"]
sync_group = "VG_1"
mail = false
"#;
    const MAIL: &str = "[mail]\nserver = \"mail.example.net\"\nfrom = \"lbd@example.net\"\nto = [\"ops@example.net\"]\n";

    #[test]
    fn what_is_said_and_what_is_not() {
        let text = format!(
            "{INSTANCES}{MAIL}[[sync_group]]\nname = \"VG_1\"\nnotify = \"/bin/any 'two words'\"\n\
             [runtime]\nnotify_fifo = \"/run/events\"\nnotify_fifo_script = [\"/bin/read\"]\n"
        );
        let config = parse("lbd.toml", &text, "host").unwrap_or_else(|error| panic!("{error}"));
        let group = &config.sync_groups[0];
        assert_eq!(group.members, ["VI_1", "VI_2"]);
        let any = group.notify.any.as_deref().unwrap_or_default();
        assert_eq!(any, ["/bin/any", "two words"]);
        let mail = config.mail.unwrap();
        assert_eq!((mail.tls, mail.port), (MailTls::StartTls, 587));
        assert_eq!(mail.hello, "host");
        assert!(mail.about.instances.iter().eq(["VI_1"]));
        assert!(mail.about.groups.iter().eq(["VG_1"]));
        let fifo = config.runtime.notify_fifo.unwrap();
        assert_eq!(fifo.reader.as_deref(), Some(&["/bin/read".to_owned()][..]));
        // A group needs no table, and nothing needs mail.
        let config = parse("lbd.toml", INSTANCES, "host").unwrap();
        assert_eq!(config.sync_groups.len(), 1);
        assert!(config.mail.is_none() && config.runtime.notify_fifo.is_none());
    }

    /// What is added, and what the error says.
    #[test]
    fn contradictions() {
        let mail = |more: &str| format!("{MAIL}{more}\n");
        let rows = [
            (
                "[[sync_group]]\nname = \"VG_2\"\n".to_owned(),
                "no instance is in the sync group `VG_2`",
            ),
            (
                "[[sync_group]]\nname = \"VG_1\"\n".repeat(2),
                "duplicate [[sync_group]] `VG_1`",
            ),
            ("[[sync_group]]\n".to_owned(), "`sync_group` needs `name`"),
            (
                "[[sync_group]]\nname = \"VG_1\"\nmail = true\n".to_owned(),
                "`mail = true` without [mail]",
            ),
            ("[mail]\n".to_owned(), "`mail` needs `server`"),
            (mail("tls = \"always\""), "`tls` cannot be \"always\""),
            (
                mail("tls = \"none\"\nca_file = \"/ca\""),
                "`ca_file` with `tls = \"none\"`",
            ),
            (
                mail("ca_file = \"ca\""),
                "`ca_file` must be an absolute path",
            ),
            (mail("password = \"x\""), "a password without `user`"),
            (
                mail("user = \"x\""),
                "one `password` or one `password_file`",
            ),
            (
                mail("user = \"x\"\npassword = \"y\"\npassword_file = \"/z\""),
                "one `password` or one `password_file`",
            ),
            (
                mail("tls = \"none\"\nuser = \"x\"\npassword = \"y\""),
                "the password would travel in clear",
            ),
            (mail("port = 65536"), "`port` is 65536"),
            (mail("timeout = \"1h\""), "`timeout` is out of range"),
            (
                mail("hello = \"two words\""),
                "is neither a host name nor an address",
            ),
            (mail("").replace("ops@", "ops at "), "is not a mail address"),
            (
                mail("").replace("[\"ops@example.net\"]", "[]"),
                "`to` must have 1 to 32 entries",
            ),
            (
                "[runtime]\nnotify_fifo_script = \"/bin/read\"\n".to_owned(),
                "`notify_fifo_script` without `notify_fifo`",
            ),
            (
                "[runtime]\nnotify_fifo = \"events\"\n".to_owned(),
                "must be an absolute path",
            ),
        ];
        for (added, expected) in rows {
            let text = format!("{INSTANCES}{added}");
            let said = parse("lbd.toml", &text, "host")
                .map_or_else(|e| e.to_string(), |_| "valid".to_owned());
            assert!(said.contains(expected), "{added}: {said}");
        }
        // On this host nobody listens between.
        let near = MAIL.replace("mail.example.net", "127.0.0.1");
        let near = format!("{INSTANCES}{near}tls = \"none\"\nuser = \"x\"\npassword = \"y\"\n");
        assert!(parse("lbd.toml", &near, "host").is_ok());
    }

    #[test]
    fn passwords_are_not_shown() {
        let text = format!("{INSTANCES}{MAIL}user = \"lbd\"\npassword = \"hidden\"\n");
        let config = parse("lbd.toml", &text, "host").unwrap();
        assert!(!format!("{config:?}").contains("hidden"));
    }
}
