//! The main job, end to end: a storefront that was written for Emporix works through the gateway unchanged.

use serde_json::json;

use crate::world::{Tokens, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_storefront_written_for_emporix_works_through_the_gateway_unchanged() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    assert!(visitor.access.starts_with("eg_a_") && visitor.refresh.starts_with("eg_ar_"));

    let cart =
        world.ask("POST /cart/acme/carts").bearer(&visitor.access).json(&json!({"siteCode": "main"})).send().await;
    assert_eq!(cart.status, 201, "{}", cart.text);
    let cart = cart.json()["cartId"].as_str().unwrap().to_owned();

    let login = world.login(&visitor.access, "john.doe@example.com").await;
    let customer = Tokens::of(&login);
    assert_eq!(customer.session_id, visitor.session_id, "the visit survives the login");
    for (snake, camel) in [("access_token", "accessToken"), ("saas_token", "saasToken"), ("expires_in", "expiresIn")] {
        assert_eq!(login.json()[snake], login.json()[camel]);
    }

    let own =
        world.ask("POST /cart/acme/carts").bearer(&customer.access).json(&json!({"siteCode": "main"})).send().await;
    let own = own.json()["cartId"].as_str().unwrap().to_owned();
    let guests = world.ask(&format!("GET /cart/acme/carts/{cart}")).bearer(&visitor.access).send().await;
    assert_eq!(guests.status, 200, "the guest's cart can still be read with the guest's handle");
    let merge = world.ask(&format!("POST /cart/acme/carts/{own}/merge")).bearer(&customer.access);
    assert!(merge.json(&json!({"carts": [cart]})).send().await.status < 300);

    let saas = login.json()["saas_token"].as_str().unwrap().to_owned();
    let order = world.ask("POST /checkout/acme/checkouts/order").bearer(&customer.access).header("saas-token", &saas);
    let order = order.json(&json!({"cartId": own})).send().await;
    assert_eq!(order.status, 201, "{}", order.text);

    let target = format!("GET /customer/acme/refreshauthtoken?refreshToken={}", customer.refresh);
    let refreshed = Tokens::of(&world.ask(&target).bearer(&visitor.access).send().await);
    assert_eq!(world.ask("GET /customer/acme/me").bearer(&refreshed.access).send().await.status, 200);

    let target = format!("GET /customer/acme/logout?accessToken={}", refreshed.access);
    assert_eq!(world.ask(&target).bearer(&refreshed.access).send().await.status, 204);
    for handle in [&refreshed.access, &customer.access, &visitor.access] {
        let answer = world.ask("GET /customer/acme/me").bearer(handle).send().await;
        assert_eq!((answer.status, answer.code()), (401, "session_ended".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_holds_one_opaque_cookie_and_nothing_else() {
    let world = World::builder().redis().start().await;
    let browser = world.browser();
    let anonymous = browser
        .send("GET /customerlogin/auth/anonymous/login?hybris-tenant=acme&client_id=storefront", |ask| ask)
        .await;
    assert_eq!(anonymous.json()["access_token"], "cookie.anonymous");
    let cookie = anonymous.cookies().pop().unwrap();
    assert!(cookie.starts_with("__Host-emporix-session=eg_k_"), "{cookie}");
    assert!(cookie.ends_with("Path=/; HttpOnly; Secure; SameSite=Lax"), "{cookie}");

    let login = browser.login().await;
    assert_eq!(login.json()["access_token"], "cookie.customer");
    assert_eq!(login.json()["saas_token"], "cookie.saas");
    let me = browser.send("GET /customer/acme/me", |ask| ask.bearer("cookie.customer")).await;
    assert_eq!(me.json()["customerNumber"], "13869000");
    let guest = browser.send("GET /customer/acme/me", |ask| ask.bearer("cookie.anonymous")).await;
    assert_eq!(guest.json()["customerNumber"], "00000000");

    let logout = browser.send("GET /customer/acme/logout?accessToken=cookie.customer", |ask| ask).await;
    assert_eq!(logout.status, 204);
    assert!(logout.cookies()[0].contains("Max-Age=0"));
    assert!(browser.cookie.lock().unwrap().is_none());
}
