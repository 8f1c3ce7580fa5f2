//! How adverts prove their origin.

use std::{collections::HashSet, ops::Range, path::PathBuf, time::Duration};

use super::Validator;
use crate::{
    config::{
        keys,
        raw::vrrp::{RawHmac, RawHmacKey},
        reader::At,
    },
    model::{Auth, HmacAuth, HmacKey, HmacMode, Secret, VrrpVersion},
};

/// Two are enough to change one for another; a few more do no harm, and a receiver looks for one by its id.
const MAX_KEYS: usize = 16;
/// keepalived's bounds of the window.
const WINDOW: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(300);
/// A window that is derived from a shorter interval would be less than what clocks are off by.
const LEAST_DEFAULT_WINDOW: Duration = Duration::from_secs(5);
const MODES: [(&str, HmacMode); 3] = [
    ("enforce", HmacMode::Enforce),
    ("permissive", HmacMode::Permissive),
    ("receive-only", HmacMode::ReceiveOnly),
];

/// What of an instance's table is about authentication.
pub(super) struct RawAuth {
    pub kind: Option<At<String>>,
    pub password: Option<At<String>>,
    pub hmac: Option<At<RawHmac>>,
}

impl Validator<'_> {
    pub(super) fn auth(
        &mut self,
        raw: RawAuth,
        version: VrrpVersion,
        advert_interval: Duration,
    ) -> Auth {
        let old = raw.password.as_ref().or(raw.kind.as_ref());
        if let Some(at) = old {
            let span = at.span.clone();
            if raw.hmac.is_some() {
                self.error(
                    &span,
                    "`password` and `auth_hmac` in one instance",
                    "the trailer proves more; leave `password` and `authentication` out",
                );
            } else if version == VrrpVersion::V3 {
                self.error(
                    &span,
                    "VRRP version 3 has no password",
                    "leave it out, or use [vrrp.auth_hmac]",
                );
            }
        }
        match raw.hmac {
            Some(at) => Auth::Hmac(self.hmac(at, advert_interval)),
            None => self.password(raw.kind, raw.password),
        }
    }

    fn password(&mut self, kind: Option<At<String>>, password: Option<At<String>>) -> Auth {
        let Some(at) = password else {
            if let Some(kind) = kind {
                self.error(&kind.span, "`authentication` without `password`", "");
            }
            return Auth::None;
        };
        let is_ah = self.choice(
            kind,
            "authentication",
            false,
            &[("pass", false), ("ah", true)],
        );
        let bytes = at.value.as_bytes();
        if bytes.is_empty() || bytes.len() > 8 {
            self.error(
                &at.span,
                "`password` must have 1 to 8 bytes",
                "VRRP carries eight bytes; keepalived uses the first eight of a longer one",
            );
            return Auth::None;
        }
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        match is_ah {
            true => Auth::Ah(padded),
            false => Auth::Pass(padded),
        }
    }

    fn hmac(&mut self, at: At<RawHmac>, advert_interval: Duration) -> HmacAuth {
        let (raw, span) = (at.value, at.span);
        if raw.keys.len() > MAX_KEYS {
            self.error(&span, format!("more than {MAX_KEYS} keys"), "");
        }
        let mut ids = HashSet::new();
        let mut keys = Vec::with_capacity(raw.keys.len());
        for At { value, span } in raw.keys {
            let id_span = value.id.as_ref().map_or(span.clone(), |id| id.span.clone());
            let key = self.hmac_key(value, &span);
            if key.id != 0 && !ids.insert(key.id) {
                let message = format!("two keys have the id {}", key.id);
                self.error(&id_span, message, "every key needs an id of its own");
            }
            keys.push(key);
        }
        let active_span = raw.active_key.as_ref().map(|at| at.span.clone());
        let active = self.small(raw.active_key, "active_key", 1..=255, 0);
        if let (Some(span), false) = (active_span, active == 0 || ids.contains(&active)) {
            self.error(
                &span,
                format!("`active_key` is {active}, and no key has that id"),
                "",
            );
        }
        let has_clock = self.choice(
            raw.anti_replay,
            "anti_replay",
            true,
            &[("time", true), ("monotonic", false)],
        );
        let default = (3 * advert_interval).clamp(LEAST_DEFAULT_WINDOW, *WINDOW.end());
        if let (Some(at), false) = (&raw.time_window, has_clock) {
            self.error(
                &at.span,
                "`time_window` without clocks",
                "leave it out, or use `anti_replay = \"time\"`",
            );
        }
        if let Some(at) = &raw.time_window
            && at.value.subsec_nanos() != 0
        {
            self.error(&at.span, "`time_window` must be whole seconds", "");
        }
        let window = self.duration(
            raw.time_window,
            "time_window",
            WINDOW,
            // Whole seconds are compared.
            Duration::from_secs(default.as_secs() + u64::from(default.subsec_nanos() != 0)),
        );
        HmacAuth {
            keys,
            active,
            window: has_clock.then_some(window),
            mode: self.choice(raw.mode, "mode", HmacMode::Enforce, &MODES),
        }
    }

    fn hmac_key(&mut self, raw: RawHmacKey, span: &Range<usize>) -> HmacKey {
        let secret = match &raw.value {
            Some(at) => keys::parse(&at.value).unwrap_or_else(|bad| {
                self.error(
                    &at.span,
                    bad.to_string(),
                    "such as \"hex:\" and what `openssl rand -hex 32` prints",
                );
                Vec::new()
            }),
            None => Vec::new(),
        };
        let file = raw.file.map(|at| {
            if !at.value.starts_with('/') {
                self.error(&at.span, "`file` must be an absolute path", "");
            }
            PathBuf::from(at.value)
        });
        if raw.value.is_some() && file.is_some() {
            self.error(span, "`value` and `file` in one key", "keep one of them");
        }
        HmacKey {
            id: self.small(raw.id, "id", 1..=255, 0),
            secret: Secret::new(secret),
            file,
        }
    }
}
