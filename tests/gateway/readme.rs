//! What the README promises to newcomers, run as they would run it.

use std::process::Command;

use crate::world::World;

const README: &str = include_str!("../../README.md");

/// The story, as `make demo` prints it.
fn story() -> &'static str {
    let block = README.split("```sh story\n").nth(1).expect("the README has a story");
    block.split("```").next().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_curl_story_happens_as_it_is_told() {
    let world = World::builder().set("COOKIE__INSECURE_LOOPBACK", "true").start().await;
    let jar = tempfile::tempdir().unwrap();
    let script = story()
        .replace("http://127.0.0.1:8080", &format!("http://{}", world.gateway().public))
        .replace("/tmp/emporix-demo-cookies", &jar.path().join("cookies").display().to_string());
    let told = tokio::task::spawn_blocking(move || Command::new("bash").args(["-euc", &script]).output().unwrap());
    let told = told.await.unwrap();
    let shown = String::from_utf8(told.stdout).unwrap();
    let errors = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success(), "{shown}\n{errors}");
    for expected in [
        "visitor: eg_a_",
        "cartId",
        "customer: eg_c_",
        r#""customerNumber":"13869000""#,
        r#""refresh_token":"eg_cr_"#,
        r#""access_token":"cookie.anonymous""#,
        r#""access_token":"cookie.customer""#,
        r#""customerId":"13869000""#,
        "logout: 204",
        r#""code":"session_ended""#,
        " 401",
    ] {
        assert!(shown.contains(expected), "{expected}\nin\n{shown}");
    }
}

#[test]
fn the_readme_names_every_error_code() {
    let source = include_str!("../../src/error.rs");
    let codes = source.split("pub const fn code").nth(1).unwrap().split("\n    }\n").next().unwrap();
    let codes: Vec<&str> = codes.split('"').skip(1).step_by(2).collect();
    assert!(codes.len() > 20, "{codes:?}");
    for code in codes {
        assert!(README.contains(&format!("`{code}`")), "{code}");
    }
}
