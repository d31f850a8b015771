//! `check-config` on real files: everything that is wrong is said at once, each in one line with its place.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::errands::{program, said};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let file = self.0.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Writes a certificate that is over in `year`, and its key.
    fn certificate(&self, name: &str, year: i32) -> [PathBuf; 2] {
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let [certificate_name, key_name] = [format!("{name}.crt"), format!("{name}.key")];
        [self.file(&certificate_name, &certificate.pem()), self.file(&key_name, &key.serialize_pem())]
    }

    /// Exit code and lines of `check-config`.
    fn check(&self, text: &str) -> (Option<i32>, Vec<String>) {
        let file = self.file("gateway.yaml", text);
        let (code, shown, failed) = said(&program(&["check-config", "--config", file.to_str().unwrap()]));
        assert!(!failed.contains("panicked"), "{failed}");
        let place = format!("{}:", file.display());
        (code, (shown + &failed).lines().map(|line| line.replace(&place, "")).collect())
    }

    fn tls([certificate, key]: [&Path; 2]) -> String {
        let [certificate, key] = [certificate.display(), key.display()];
        format!(
            "tenants: {{acme: {{client_id: x}}}}\nlisten:\n  tls:\n    certificate_file: {certificate}\n    key_file: {key}\n"
        )
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_its_line() {
    let folder = Folder::new();
    let [certificate, _] = folder.certificate("one", 2099);
    let [_, key] = folder.certificate("other", 2099);
    let text = format!(
        "listen:\n  trheads: 4\n  drain_timeout: 2days\n  tls:\n    certificate_file: {}\n    key_file: {}\n\
         tenants:\n  acme:\n    client_id: x\n    webhook:\n      secret_file: /nowhere/webhook\n\
         store:\n  kind: redis\n  redis:\n    url: redis://:hush-hush@[host\n    ca_file: /nowhere/ca\n\
         routes:\n  - path: /fine/{{tenant}}\n  - path: no-slash\n  - methods: [GET]\n  - path: /x/{{a}}/{{b}}*\n",
        certificate.display(),
        key.display()
    );
    let (code, lines) = folder.check(&text);
    assert_eq!(code, Some(64), "{lines:#?}");
    let expected = [
        ("2:3: listen.trheads: unknown field `trheads`", "did you mean `threads`?"),
        ("3:3: listen.drain_timeout: expected a day at most", ""),
        ("6:5: listen.tls.key_file: ", "this key does not belong to the certificate of "),
        ("11:7: tenants.acme.webhook.secret_file: cannot read /nowhere/webhook", ""),
        ("12:1: store.seal.active: ", ""),
        ("15:5: store.redis.url: expected redis://", ""),
        ("16:5: store.redis.ca_file: /nowhere/ca: ", ""),
        ("20:5: routes.2: missing field `path`", ""),
    ];
    assert!(!lines.concat().contains("hush-hush"), "{lines:#?}");
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, (start, part)) in lines.iter().zip(expected) {
        assert!(line.starts_with(start) && line.contains(part), "{start} {part} in {lines:#?}");
    }
}

#[test]
fn every_bad_rule_is_named_with_its_line() {
    let folder = Folder::new();
    let (code, lines) = folder.check(
        "tenants: {acme: {client_id: x}}\nroutes:\n  - path: no-slash\n  - path: /fine/{tenant}\n  - path: /x/{a}*\n\
         \x20 - path: /customer/{tenant}/login\n",
    );
    assert_eq!((code, lines.len()), (Some(64), 3), "{lines:#?}");
    for (line, expected) in lines.iter().zip(["3:5: routes.0: ", "5:5: routes.2: ", "6:5: routes.3: "]) {
        assert!(line.starts_with(expected), "{expected} in {lines:#?}");
    }
}

#[test]
fn a_certificate_that_cannot_be_used_is_a_fault_and_one_that_is_over_a_warning() {
    let folder = Folder::new();
    let good = folder.certificate("good", 2099);
    let over = folder.certificate("over", 2021);
    let empty = folder.file("empty.pem", "");
    let broken = folder.file("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let encrypted = folder.file("encrypted.pem", encrypted);
    let older = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let older = folder.file("older.pem", older);
    let missing = Path::new("/nowhere.pem");
    let check = |pair| folder.check(&Folder::tls(pair));
    assert_eq!(check([&good[0], &good[1]]), (Some(0), vec![" ok".to_owned()]));
    let (code, lines) = check([&over[0], &over[1]]);
    assert_eq!(code, Some(0));
    assert!(lines[0].starts_with("warning: 4:5: listen.tls.certificate_file: "), "{lines:?}");
    assert!(lines[0].contains("over.crt: expired Jan  1") && lines[1] == " ok", "{lines:?}");
    for (pair, told) in [
        ([missing, missing], &[("certificate_file", ""), ("key_file", "")][..]),
        ([&*empty, &*good[1]], &[("certificate_file", "no certificate in it")]),
        ([&*broken, &*good[1]], &[("certificate_file", "")]),
        ([&*good[0], &*empty], &[("key_file", "no private key in it")]),
        ([&*good[0], &*broken], &[("key_file", "no private key in it")]),
        ([&*good[0], &*encrypted], &[("key_file", "the private key in it is encrypted")]),
        ([&*good[0], &*older], &[("key_file", "the private key in it is encrypted")]),
        ([&*good[1], &*good[0]], &[("certificate_file", "no certificate in it"), ("key_file", "no private key in it")]),
        ([&*good[0], &*over[1]], &[("key_file", "this key does not belong to")]),
    ] {
        let (code, lines) = check(pair);
        assert_eq!((code, lines.len()), (Some(64), told.len()), "{lines:?}");
        for (line, (key, why)) in lines.iter().zip(told) {
            assert!(line.contains(&format!("listen.tls.{key}: /")) && line.contains(why), "{key}: {line}");
        }
    }
}

#[test]
fn what_can_be_served_and_had_better_be_looked_at_is_a_warning() {
    let folder = Folder::new();
    let private = folder.0.path().join("private");
    std::fs::DirBuilder::new().mode(0o700).create(&private).unwrap();
    let socket = |folder: &Path| format!("listen: {{upgrade_socket: {}/upgrade.sock}}\n", folder.display());
    let set = |name: &str, text: &str| {
        format!("saas_token: {{mode: jwks, jwks_file: {}}}", folder.file(name, text).display())
    };
    let until = |mode: &str, until: &str| format!("foreign_bearer: {{mode: {mode}, until: '{until}'}}");
    let keys = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let unusable = "2:28: tenants.acme.saas_token.jwks_file: ";
    for (section, listen, warning) in [
        (set("keys", keys), "", ""),
        (set("garbage", "garbage"), "", unusable),
        (set("none", r#"{"keys": []}"#), "", unusable),
        (
            "saas_token: {mode: jwks, jwks_file: /nowhere/keys}".to_owned(),
            "",
            "2:28: tenants.acme.saas_token.jwks_file: /nowhere/keys: ",
        ),
        (until("adopt", "2099-01-01T00:00:00Z"), "", ""),
        (until("adopt", "2020-01-01T00:00:00Z"), "", "2:33: tenants.acme.foreign_bearer.until: is over: "),
        (until("refuse", "2020-01-01T00:00:00Z"), "", ""),
        (String::new(), &*socket(&private), ""),
        (
            String::new(),
            &*socket(Path::new("/tmp")),
            "4:10: listen.upgrade_socket: --upgrade refuses it: others may enter /tmp",
        ),
        (String::new(), "refresh: {lease: 5s}\n", "4:11: refresh.lease: shorter than identity.timeout: "),
        (
            String::new(),
            "listen: {trusted_proxies: [10.0.0.0/8, '::/0']}\n",
            "4:10: listen.trusted_proxies: trusts everybody: ",
        ),
        (
            String::new(),
            "forward_auth: {trusted_peers: [0.0.0.0/0]}\n",
            "4:16: forward_auth.trusted_peers: trusts everybody: ",
        ),
    ] {
        let (code, lines) = folder.check(&format!("tenants: {{acme: {{client_id: x,\n  {section}\n}}}}\n{listen}"));
        assert_eq!(code, Some(0), "{lines:#?}");
        let (warnings, last) = lines.split_at(lines.len() - 1);
        assert_eq!((last, warnings.len()), (&[" ok".to_owned()][..], usize::from(!warning.is_empty())), "{lines:#?}");
        assert!(warnings.iter().all(|line| line.starts_with(&format!("warning: {warning}"))), "{warning}: {lines:#?}");
    }
}

#[test]
fn what_check_config_refuses_is_not_served() {
    let folder = Folder::new();
    let file = folder.file("gateway.yaml", "tenants: {acme: {client_id: x}}\nroutes:\n  - path: a\n  - path: b\n");
    let (code, _, failed) = said(&program(&["serve", "--config", file.to_str().unwrap()]));
    assert_eq!((code, failed.lines().count()), (Some(64), 2), "{failed}");
}

#[test]
fn a_file_of_another_version_is_one_fault_that_says_what_is_read() {
    let folder = Folder::new();
    let file =
        |version: &str| format!("tenants: {{acme: {{client_id: x, colour: red}}}}\nversion: {version}\nmoved: 1\n");
    for version in ["2", "0", "'1'", "latest"] {
        let (code, lines) = folder.check(&file(version));
        let shown = version.trim_matches('\'');
        assert_eq!((code, lines.len()), (Some(64), 1), "{lines:#?}");
        assert!(lines[0].contains("2:1: version: ") && lines[0].contains(shown), "{lines:#?}");
        assert!(lines[0].ends_with(" is a version that this release does not read; it reads 1"), "{lines:#?}");
    }
    assert_eq!(folder.check(&file("1")).1.len(), 2, "the others are said where the version fits");
    assert_eq!(folder.check("version: 1\ntenants: {acme: {client_id: x}}\n").0, Some(0));
}

#[test]
fn the_certificates_of_both_listeners_are_looked_at_whatever_the_other_is_like() {
    let folder = Folder::new();
    let [over, key] = folder.certificate("over", 2021).map(|file| file.display().to_string());
    let [missing, empty] = ["/nowhere.pem".to_owned(), folder.file("empty.pem", "").display().to_string()];
    let section = |[certificate, key, client_ca]: [&str; 3]| {
        format!(
            "  tls:\n    certificate_file: {certificate}\n    key_file: {key}\n{}",
            if client_ca.is_empty() { String::new() } else { format!("    client_ca_file: {client_ca}\n") }
        )
    };
    let check = |listen: [&str; 3], internal: [&str; 3]| {
        folder.check(&format!(
            "tenants: {{acme: {{client_id: x}}}}\nlisten:\n{}internal:\n  listen: 127.0.0.1:9443\n  token: 0123456789abcdef\n{}",
            section(listen),
            section(internal)
        ))
    };
    let (code, lines) = check([&missing, &missing, &empty], [&empty, &key, &missing]);
    assert_eq!(code, Some(64), "{lines:#?}");
    let places = [
        "4:5: listen.tls.certificate_file: /nowhere.pem: ",
        "5:5: listen.tls.key_file: /nowhere.pem: ",
        "6:5: listen.tls.client_ca_file: ",
        "11:5: internal.tls.certificate_file: ",
        "13:5: internal.tls.client_ca_file: /nowhere.pem: ",
    ];
    assert_eq!(lines.len(), places.len(), "{lines:#?}");
    for (line, place) in lines.iter().zip(places) {
        assert!(line.starts_with(place), "{place} in {lines:#?}");
    }
    let (code, lines) = check([&over, &key, ""], [&over, &key, ""]);
    let warned = ["4:5: listen.tls", "10:5: internal.tls"];
    assert_eq!((code, lines.len()), (Some(0), 1 + warned.len()), "{lines:#?}");
    for (line, place) in lines.iter().zip(warned) {
        let expected = format!("warning: {place}.certificate_file: {over}: expired Jan  1");
        assert!(line.starts_with(&expected), "{expected} in {lines:#?}");
    }
}
