//! `explain`: what would happen to a request, said as the gateway then does it, and without a credential's value.

use serde_json::json;

use crate::errands::{program, said};
use crate::world::World;

const HANDLE: &str = "eg_c_";

fn config() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "tenants:\n  acme:\n    client_id: storefront\n    origins: ['https://shop.example.com']\n    hosts: [shop.example.com]\n\
        \x20 globex: {client_id: storefront}\n\
        routes:\n  - {path: '/cart/{tenant}/**', access: customer, saas_token: required}\n";
    std::fs::write(file.path(), text).unwrap();
    file
}

/// Exit code, and the points of the explanation.
fn explain(arguments: &[&str]) -> (Option<i32>, String) {
    let file = config();
    let arguments = [&["explain", "--config", file.path().to_str().unwrap()][..], arguments].concat();
    let (code, shown, failed) = said(&program(&arguments));
    (code, shown + &failed)
}

fn point<'t>(shown: &'t str, name: &str) -> &'t str {
    shown.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default()
}

#[test]
fn a_guests_request_is_followed_from_target_to_answer() {
    let (code, shown) =
        explain(&["GET", "https://shop.example.com/product/acme/products?q=cup", "-H", "X-Forwarded-For: 1.2.3.4"]);
    assert_eq!(code, Some(0), "{shown}");
    for (name, expected) in [
        ("target", "reads one way only"),
        ("route", "/product/{tenant}/** (shipped table): access guest"),
        ("tenant", "acme, by the path"),
        ("credential", "none"),
        ("proof", "not demanded"),
        ("stripped", "x-forwarded-for, host"),
        ("injected", "authorization, host"),
        ("answer", "by https://api.emporix.io, with the tenant's shared guest token"),
        ("forward-auth", "200 (there is no forward_auth.listen)"),
    ] {
        assert!(point(&shown, name).starts_with(expected), "{name}: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_explained_is_what_happens_and_no_credential_is_printed() {
    let world = World::new().await;
    let customer = world.customer().await;
    let access = customer.tokens.access.as_str();
    assert!(access.starts_with(HANDLE));
    let bearer = format!("Authorization: Bearer {access}");
    let foreign = "Authorization: Bearer tpYgJPZqddEQ2zwfzNtx79noBP65";
    let cookie = "Cookie: __Host-emporix-session=eg_k_broken";
    for (arguments, expected) in [
        (&["GET", "/customer/acme/me", "-H", &bearer][..], "a handle (eg_c_***) in Authorization"),
        (
            &["GET", "/customer/acme/me", "-H", foreign],
            "a token that the gateway did not issue in Authorization, refused",
        ),
        (&["GET", &format!("/cart/acme/carts?x={access}")], "400 bad_target"),
        (&["GET", &format!("/customer/acme/logout?accessToken={access}")], "a handle (eg_c_***) in the query"),
        (&["GET", "/customer/acme/me", "-H", cookie], "401 session_ended"),
        (&["POST", "/oauth/token"], "403 denied"),
        (&["DELETE", "/customer/acme/login"], "405 method_not_allowed"),
        (&["GET", "/a/../b"], "400 bad_target"),
        (&["GET", "/cart/acme/carts", "-H", "Emporix-Tenant: globex"], "403 tenant_mismatch"),
        (&["GET", "/cart/nobody/carts"], "404 unknown_tenant"),
        (&["POST", "/cart/acme/carts", "-H", "Sec-Fetch-Site: cross-site"], "403 proof_required"),
        (&["POST", "/checkout/acme/checkouts/order"], "401 session_required"),
        (
            &["POST", "/cart/acme/carts", "-H", &bearer],
            "routes.0 of this configuration): access customer, inject session, saas_token required",
        ),
        (&["POST", "/customer/acme/login", "-H", "Origin: https://shop.example.com"], "access-control-allow-origin"),
        (
            &[
                "OPTIONS",
                "/cart/acme/carts",
                "-H",
                "Origin: https://shop.example.com",
                "-H",
                "Access-Control-Request-Method: POST",
            ],
            "204 to the preflight",
        ),
        (&["GET", "/product/acme/products", "-H", "X_Forwarded_For: x"], "forward-auth  by the gateway: 403 denied"),
    ] {
        let (code, shown) = explain(arguments);
        assert_eq!(code, Some(0), "{shown}");
        assert!(shown.contains(expected), "{expected}\nin\n{shown}");
        for secret in [access, "tpYgJPZqddEQ2zwfzNtx79noBP65", "eg_k_broken"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        // Where the client asks exactly this, and not what it makes of it, the gateway answers as was explained.
        if let [method, url] = arguments
            && !url.contains("..")
            && !url.contains(access)
        {
            let happened = world.ask(&format!("{method} {url}")).send().await;
            let answer = format!("{} {}", happened.status, happened.code());
            assert!(shown.contains(&answer), "{answer}: {shown}");
        }
    }
    assert_eq!(
        world.ask("GET /customer/acme/me").bearer(access).send().await.json()["customerNumber"],
        json!("13869000")
    );
}

#[test]
fn what_is_no_request_is_one_clear_line() {
    for arguments in [&["G T", "/"][..], &["GET", "/", "-H", "no colon"], &["GET", "/", "-H", "a b: c"], &["GET"]] {
        let (code, shown) = explain(arguments);
        assert_eq!(code, Some(64), "{shown}");
        assert!(!shown.contains("panicked"), "{shown}");
    }
}
