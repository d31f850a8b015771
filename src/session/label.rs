//! Short names of sessions and customers, for log lines and for operators.
//! Keyed: whoever reads a label can follow a session, and can neither name its record nor guess whose it is.

use std::fmt;

use aws_lc_rs::hmac::{Context, HMAC_SHA256, Key, sign};

use super::{SessionKey, TenantId};

/// Bytes of a label: too many for two sessions of one store to share one by chance.
const LENGTH: usize = 8;

/// What the keys of labels are derived for, so that they are nothing as any other key.
const PURPOSE: &[u8] = b"emporix-gateway: labels, version 1";

/// A session's label: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionLabel([u8; LENGTH]);

/// A customer's label, of the same form; it is nothing as a session's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CustomerLabel([u8; LENGTH]);

impl SessionLabel {
    /// Parses a label; anything but 16 lowercase hexadecimal digits is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let well_formed =
            digits.len() == 2 * LENGTH && digits.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
        let number = well_formed.then(|| u64::from_str_radix(text, 16).ok()).flatten()?;
        Some(Self(number.to_be_bytes()))
    }
}

/// The keys that labels are made with.
pub struct LabelKeys {
    active: Key,
    older: Vec<Key>,
}

impl LabelKeys {
    /// The keys that belong to these secrets. Labels are made with the first; those that the others made are recognised.
    #[must_use]
    pub fn derived<'s>(active: &[u8], older: impl IntoIterator<Item = &'s [u8]>) -> Self {
        let derive = |secret: &[u8]| Key::new(HMAC_SHA256, sign(&Key::new(HMAC_SHA256, secret), PURPOSE).as_ref());
        Self { active: derive(active), older: older.into_iter().map(derive).collect() }
    }

    /// A key that nobody knows: its labels mean something to this process alone.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        Ok(Self::derived(&secret, []))
    }

    /// The label of the session `key`.
    #[must_use]
    pub fn session(&self, key: &SessionKey) -> SessionLabel {
        session_label(&self.active, key)
    }

    /// Whether `label` is, or was under an older key, the label of the session `key`.
    #[must_use]
    pub fn recognise(&self, label: SessionLabel, key: &SessionKey) -> bool {
        std::iter::once(&self.active).chain(&self.older).any(|with| session_label(with, key) == label)
    }

    /// The label of a tenant's customer.
    #[must_use]
    pub fn customer(&self, tenant: &TenantId, customer_id: &str) -> CustomerLabel {
        // No tenant's name holds a zero byte.
        let parts = [b"customer", tenant.as_str().as_bytes(), b"\0", customer_id.as_bytes()];
        CustomerLabel(shortened(&self.active, &parts))
    }
}

fn session_label(with: &Key, key: &SessionKey) -> SessionLabel {
    SessionLabel(shortened(with, &[b"session", key.as_bytes()]))
}

fn shortened(with: &Key, parts: &[&[u8]]) -> [u8; LENGTH] {
    let mut context = Context::with_key(with);
    parts.iter().for_each(|part| context.update(part));
    let mut label = [0; LENGTH];
    label.copy_from_slice(&context.sign().as_ref()[..LENGTH]);
    label
}

macro_rules! shown_as_digits {
    ($($label:ident),+) => {$(
        impl fmt::Display for $label {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", u64::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $label {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+};
}

shown_as_digits!(SessionLabel, CustomerLabel);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: SessionKey = SessionKey::from_bytes([7; 16]);

    fn keys(active: &[u8], older: &[&[u8]]) -> LabelKeys {
        LabelKeys::derived(active, older.iter().copied())
    }

    #[test]
    fn a_label_is_the_same_wherever_the_key_is_the_same_and_another_one_elsewhere() {
        let label = keys(b"one", &[]).session(&KEY);
        assert_eq!(keys(b"one", &[b"two"]).session(&KEY), label);
        assert_ne!(keys(b"two", &[b"one"]).session(&KEY), label);
        assert_ne!(LabelKeys::random().unwrap().session(&KEY), LabelKeys::random().unwrap().session(&KEY));
    }

    #[test]
    fn a_label_of_an_older_key_is_recognised_and_one_of_an_unknown_key_is_not() {
        let label = keys(b"old", &[]).session(&KEY);
        assert!(keys(b"new", &[b"old"]).recognise(label, &KEY));
        assert!(!keys(b"new", &[]).recognise(label, &KEY));
        assert!(!keys(b"new", &[b"old"]).recognise(label, &SessionKey::from_bytes([8; 16])));
    }

    #[test]
    fn the_secret_itself_makes_no_label() {
        let direct = shortened(&Key::new(HMAC_SHA256, b"one"), &[b"session", KEY.as_bytes()]);
        assert_ne!(keys(b"one", &[]).session(&KEY), SessionLabel(direct));
    }

    #[test]
    fn a_customers_label_depends_on_the_tenant() {
        let [acme, globex] = ["acme", "globex"].map(|name| TenantId::parse(name).unwrap());
        let keys = keys(b"one", &[]);
        assert_ne!(keys.customer(&acme, "1"), keys.customer(&globex, "1"));
        assert_ne!(keys.customer(&acme, "1"), keys.customer(&acme, "2"));
    }

    #[test]
    fn what_is_no_label_does_not_parse() {
        for bad in
            ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "+123456789abcdef", "0123456789abcdeg"]
        {
            assert_eq!(SessionLabel::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_label_is_read_as_it_is_written_and_shows_nothing_of_its_session(bytes: [u8; 16], secret: [u8; 32]) {
            let key = SessionKey::from_bytes(bytes);
            let label = keys(&secret, &[]).session(&key);
            let text = label.to_string();
            prop_assert_eq!(text.len(), 16);
            prop_assert_eq!(SessionLabel::parse(&text), Some(label));
            let raw: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert!(!raw.contains(&text));
        }

        #[test]
        fn two_sessions_do_not_share_a_label(one: [u8; 16], two: [u8; 16], secret: [u8; 32]) {
            prop_assume!(one != two);
            let keys = keys(&secret, &[]);
            prop_assert_ne!(keys.session(&SessionKey::from_bytes(one)), keys.session(&SessionKey::from_bytes(two)));
        }

        #[test]
        fn any_text_parses_to_what_it_says_or_not_at_all(text in "[0-9a-fA-F+ ]{0,20}") {
            if let Some(label) = SessionLabel::parse(&text) {
                prop_assert_eq!(label.to_string(), text);
            }
        }
    }
}
