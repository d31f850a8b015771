//! What a client says of where it comes from and whom it asks: nobody behind the program hears it.

use super::{ORDERS, PRICES, Street};
use crate::steps::ANONYMOUS_LOGIN;
use crate::world::Ask;

/// Visitors that an address may have minted at once.
pub const BURST: usize = 6;

/// An address that no client here has.
const FORGED: &str = "203.0.113.7";

const FIELDS: [(&str, &str); 13] = [
    ("x-forwarded-for", FORGED),
    ("x-real-ip", FORGED),
    ("forwarded", "for=203.0.113.7;host=forged.example.com;proto=https"),
    ("x-forwarded-host", "forged.example.com"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-port", "forged"),
    ("x-forwarded-prefix", "/forged"),
    ("x-forwarded-server", "forged"),
    ("x-forwarded-scheme", "forged"),
    ("x-forwarded-ssl", "forged"),
    ("x-original-host", "forged.example.com"),
    ("x-original-forwarded-for", FORGED),
    ("x-forwarded-for", "203.0.113.7, 127.0.0.1"),
];

fn lying<'w>(ask: Ask<'w>) -> Ask<'w> {
    FIELDS.into_iter().fold(ask, |ask, (name, value)| ask.header(name, value))
}

/// The API hears where the client really is, and nothing else.
pub async fn addresses_do_not_reach_the_api(street: &Street, access: &str) {
    for line in [ORDERS, PRICES] {
        let ask = street.world.ask_from([127, 0, 0, 2], street.ingress.address, line);
        let (answer, reached) = street.reached(lying(ask.bearer(access))).await;
        assert_eq!((answer.status, reached.len()), (200, 1), "{}", answer.text);
        let heard = format!("{reached:?}");
        assert!(!heard.contains("203.0.113") && !heard.contains("forged"), "{heard}");
        assert_eq!(reached[0].headers("x-forwarded-for"), ["127.0.0.2"], "{heard}");
        assert_eq!(reached[0].headers("x-forwarded-proto"), ["http"], "{heard}");
        assert!(reached[0].headers("authorization")[0].starts_with("Bearer "), "{heard}");
    }
    // Named by the client as the connection's own, what is ours would be dropped behind it.
    for name in ["x-forwarded-for", "authorization", "saas-token", "x-emporix-session-id", "x-emporix-customer-id"] {
        let ask = street.world.ask_from([127, 0, 0, 2], street.ingress.address, ORDERS).bearer(access);
        let (answer, reached) = street.reached(ask.header("connection", &format!("close, {name}"))).await;
        assert!(matches!(answer.status, 200 | 400 | 401), "{name}: {} {}", answer.status, answer.text);
        for request in reached {
            assert!(!request.headers("connection").concat().contains(name), "{name}: {request:?}");
            assert_eq!(request.headers(name).len(), 1, "{name}: {request:?}");
        }
    }
    // Where a name with `_` is read as one with `-`, another one would speak. Refused or dropped, it does not.
    for name in ["x_forwarded_for", "x_real_ip", "x.real.ip", "x_forwarded_host"] {
        let ask = street.world.ask_from([127, 0, 0, 2], street.ingress.address, ORDERS).bearer(access);
        let (_, reached) = street.reached(ask.header(name, FORGED)).await;
        assert!(!format!("{reached:?}").contains("203.0.113"), "{name}: {reached:?}");
    }
}

/// Rates count the client, whatever it says, at both of the gateway's doors; its word is in no log.
pub async fn addresses_do_not_count(street: &Street) {
    let visit = |source, line: &'static str| {
        lying(street.world.ask_from(source, street.ingress.address, line))
            .header("sec-fetch-site", "same-origin")
            .send()
    };
    for (source, line) in [([127, 0, 0, 3], PRICES), ([127, 0, 0, 4], ANONYMOUS_LOGIN)] {
        for visitor in 0..BURST {
            assert_eq!(visit(source, line).await.status, 200, "{line}: {visitor}");
        }
        let beyond = visit(source, line).await;
        assert_eq!((beyond.status, beyond.code().as_str()), (429, "rate_limited"), "{line}: {}", beyond.text);
        assert!(!beyond.header("retry-after").is_empty(), "{line}");
    }
    assert_eq!(visit([127, 0, 0, 5], PRICES).await.status, 200, "others are not counted with it");
    let log = crate::world::logged();
    assert!(!log.contains("203.0.113") && !log.contains("forged.example.com"));
}

/// A tenant is named by the host that was asked, and by none that the client claims beside it.
pub async fn hosts_are_not_believed(street: &Street) {
    let brands = || street.ask("GET /brand/brands");
    let (asked, reached) = street.reached(brands().header("host", "globex.example.com")).await;
    assert_eq!((asked.status, reached.len()), (200, 1), "{}", asked.text);
    for name in ["x-forwarded-host", "x-original-host", "x-forwarded-server", "forwarded"] {
        let value = if name == "forwarded" { "host=globex.example.com" } else { "globex.example.com" };
        let (claimed, reached) = street.reached(brands().header(name, value)).await;
        assert!((400..500).contains(&claimed.status), "{name}: {} {}", claimed.status, claimed.text);
        assert!(reached.is_empty(), "{name}");
    }
    let url = ("x-original-url", "http://globex.example.com/brand/brands");
    let (claimed, reached) = street.reached(brands().header(url.0, url.1)).await;
    assert!((400..500).contains(&claimed.status) && reached.is_empty(), "{} {}", claimed.status, claimed.text);
}
