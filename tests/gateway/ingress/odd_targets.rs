//! Targets that read in more than one way, sent byte for byte: what was judged is what the API gets, or nobody passes.

use Fate::{AsSent, Passed, Refused, Served};
use Program::{Caddy, Envoy, Haproxy, Nginx, Traefik};

use super::Street;
use super::programs::{Behind, Ingress, Program};
use super::tap::{Tap, field, target};

/// Ones that a storefront may send.
const PLAIN: [&[u8]; 6] = [
    b"/order-v2/acme/orders",
    b"/order-v2/acme/orders/caf%C3%A9;v=1,2",
    b"/order-v2/acme/orders/a:b@c!$&'()*+=~-._",
    b"/order-v2/acme/orders?q=a%20b&x=../%2F..&y=a+b&z=%E2%82%AC",
    b"/order-v2/acme/orders?q=%2e%2e%2f%00%0d%0a&a=b?c//d",
    b"/order-v2/acme/orders??",
];

/// Who does anything else with a target than to refuse it, and what.
type Exceptions = &'static [(Program, Fate)];

/// Others, which are refused but for the exceptions. Caddy and Traefik write a path anew before they ask about it, and
/// Traefik tidies it too; where nginx and HAProxy may not pass a request, the gateway serves it as it reads it.
const ODD: [(&[u8], Exceptions); 48] = [
    // Bytes that need escaping.
    (
        b"/order-v2/acme/orders/caf\xc3\xa9",
        &[(Caddy, Passed(b"/order-v2/acme/orders/caf%C3%A9")), (Traefik, Passed(b"/order-v2/acme/orders/caf%C3%A9"))],
    ),
    (b"/order-v2/acme/orders/\x80", &[]),
    (b"/order-v2/acme/orders/\xff", &[]),
    (b"/order-v2/acme/orders/\xc0\xae\xc0\xae/x", &[]),
    (b"/order-v2/acme/orders/a\x00b", &[]),
    (b"/order-v2/acme/orders/a\x01b", &[]),
    (b"/order-v2/acme/orders/a\x09b", &[]),
    (b"/order-v2/acme/orders/a\x0bb", &[]),
    (b"/order-v2/acme/orders/a\x1fb", &[]),
    (b"/order-v2/acme/orders/a\x7fb", &[(Haproxy, Served)]),
    (b"/order-v2/acme/orders/a b", &[]),
    (b"/order-v2/acme/orders/a\\b", &[]),
    (
        b"/order-v2/acme/orders/a\"<>^`{|}b",
        &[
            (Nginx, AsSent),
            (Haproxy, AsSent),
            (Caddy, Passed(b"/order-v2/acme/orders/a%22%3C%3E%5E%60%7B%7C%7Db")),
            (Traefik, Passed(b"/order-v2/acme/orders/a%22%3C%3E%5E%60%7B%7C%7Db")),
        ],
    ),
    (
        b"/order-v2/acme/orders/a\"b%2Cc%3bd",
        &[
            (Nginx, AsSent),
            (Haproxy, AsSent),
            (Envoy, AsSent),
            (Caddy, Passed(b"/order-v2/acme/orders/a%22b,c;d")),
            (Traefik, Passed(b"/order-v2/acme/orders/a%22b,c;d")),
        ],
    ),
    (
        b"/order-v2/acme/orders/a|b",
        &[
            (Nginx, AsSent),
            (Haproxy, AsSent),
            (Envoy, AsSent),
            (Caddy, Passed(b"/order-v2/acme/orders/a%7Cb")),
            (Traefik, Passed(b"/order-v2/acme/orders/a%7Cb")),
        ],
    ),
    (b"/order-v2/acme/orders#fragment", &[(Nginx, Served), (Caddy, Passed(b"/order-v2/acme/orders%23fragment"))]),
    // Escapes of what must not be escaped, or of nothing.
    (b"/order-v2/acme/orders/a%00b", &[]),
    (b"/order-v2/acme/orders/a%0d%0ab", &[]),
    (b"/order-v2/acme/orders/a%2fb", &[]),
    (b"/order-v2/acme/orders/a%2Fb", &[]),
    (b"/order-v2/acme/orders/a%5cb", &[]),
    (b"/order-v2/acme/orders/%61", &[(Traefik, Passed(b"/order-v2/acme/orders/a"))]),
    (b"/order-v2/acme/%6frders", &[(Traefik, Passed(b"/order-v2/acme/orders"))]),
    (b"/order-v2/acme/orders/a%", &[]),
    (b"/order-v2/acme/orders/a%zz", &[]),
    (b"/order-v2/acme/orders/%ff", &[]),
    (b"/order-v2/acme/orders/a%25b", &[]),
    (b"/order-v2/acme/orders/%u0061", &[]),
    // Other ways to the same place.
    (b"//order-v2/acme/orders", &[(Traefik, Passed(b"/order-v2/acme/orders"))]),
    (b"/order-v2//acme/orders", &[(Traefik, Passed(b"/order-v2/acme/orders"))]),
    (b"/order-v2/acme/orders//", &[(Traefik, Passed(b"/order-v2/acme/orders/"))]),
    (b"/order-v2/acme/./orders", &[(Traefik, Passed(b"/order-v2/acme/orders"))]),
    (b"/product/acme/../../order-v2/acme/orders", &[(Traefik, Passed(b"/order-v2/acme/orders"))]),
    (b"/product/acme/%2e%2e/%2e%2e/order-v2/acme/orders", &[(Traefik, Passed(b"/order-v2/acme/orders"))]),
    (b"/product/acme/..%2f..%2forder-v2/acme/orders", &[]),
    (b"/product/acme/..;/..;/order-v2/acme/orders", &[]),
    (b"/product/acme/..\\..\\order-v2/acme/orders", &[]),
    (b"/order-v2/acme/orders/..", &[(Traefik, Passed(b"/order-v2/acme"))]),
    (b"/%63ustomer/acme/me", &[(Traefik, Served)]),
    (b"/product/../customer/acme/me", &[(Traefik, Served)]),
    (
        b"http://globex.example.com/order-v2/acme/orders",
        &[
            (Nginx, Passed(b"/order-v2/acme/orders")),
            (Caddy, Passed(b"/order-v2/acme/orders")),
            (Traefik, Passed(b"/order-v2/acme/orders")),
            (Envoy, Passed(b"/order-v2/acme/orders")),
        ],
    ),
    (b"*", &[]),
    // Odd queries.
    (b"/order-v2/acme/orders?q=\xff\x80", &[]),
    (b"/order-v2/acme/orders?q=caf\xc3\xa9", &[(Nginx, AsSent), (Caddy, AsSent), (Traefik, AsSent)]),
    (b"/order-v2/acme/orders?q=a\x01b", &[]),
    (b"/order-v2/acme/orders?q=a\x7fb", &[]),
    (b"/order-v2/acme/orders?q=a b", &[]),
    (b"/order-v2/acme/orders?q=\"<>^`{|}\\#x", &[]),
];

/// What comes of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The program refuses it, or the gateway.
    Refused,
    /// The API gets it, byte for byte.
    AsSent,
    /// The API gets this, which is what was judged.
    Passed(&'static [u8]),
    /// The gateway does the whole of it.
    Served,
}

/// A program with an ear before each of what it stands before.
struct Wired {
    program: Program,
    ingress: Ingress,
    verdicts: Tap,
    api: Tap,
}

impl Wired {
    async fn on(street: &Street) -> Self {
        let Behind { public, verdicts, api } = street.behind;
        let (verdicts, api) = (Tap::before(verdicts).await, Tap::before(api).await);
        let behind = Behind { public, verdicts: verdicts.port, api: api.port };
        let ingress = Ingress::start(street.program, behind).await;
        Self { program: street.program, ingress, verdicts, api }
    }

    /// Fails unless a customer's request for `wanted` comes to this, or where the API gets anything but what was judged.
    async fn comes_to(&self, street: &Street, access: &str, wanted: &[u8], fate: Fate) {
        let rest = format!(" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {access}\r\nConnection: close\r\n\r\n");
        let answer = street.world.raw_at(self.ingress.address, &[b"GET ", wanted, rest.as_bytes()].concat()).await;
        let (verdicts, reached) = (self.verdicts.heads(), self.api.heads());
        let told = format!("{:?} {}: {fate:?} {answer}", self.program, wanted.escape_ascii());
        assert!(verdicts.len() <= 1 && reached.len() <= 1, "asked and sent once: {told} {}", verdicts.len());
        let got = reached.first().map(|head| target(head));
        match fate {
            AsSent => assert_eq!(got, Some(wanted), "{told}"),
            Passed(other) => assert_eq!(got, Some(other), "{told}"),
            Served => assert!(got.is_none() && answer.contains(" 200 "), "{told}"),
            Refused => assert!(got.is_none() && matches!(answer.split(' ').nth(1), Some("400" | "404")), "{told}"),
        }
        if got.is_some() {
            assert_eq!(got, verdicts.first().map(|verdict| self.judged(verdict)), "judged: {told}");
        }
    }

    /// The target that a verdict was asked about.
    fn judged<'h>(&self, verdict: &'h [u8]) -> &'h [u8] {
        match self.program {
            Nginx | Haproxy => field(verdict, "x-original-uri").unwrap(),
            Traefik | Caddy => field(verdict, "x-forwarded-uri").unwrap(),
            Envoy => target(verdict).strip_prefix(b"/auth/envoy").unwrap(),
        }
    }
}

pub async fn arrive_as_they_were_judged(street: &Street, access: &str) {
    let wired = Wired::on(street).await;
    for plain in PLAIN {
        wired.comes_to(street, access, plain, AsSent).await;
    }
    for (odd, fates) in ODD {
        let fate = fates.iter().find(|(program, _)| *program == street.program).map_or(Refused, |(_, fate)| *fate);
        wired.comes_to(street, access, odd, fate).await;
    }
}
