//! The gateway against the simulator and real stores: one file per promise, one sentence per test.

#![expect(unreachable_pub, reason = "nothing reaches into a test binary")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin_sessions;
mod api_routes;
mod api_sessions;
mod architecture;
mod bad_input;
mod browsers;
mod check_config;
mod doctor;
mod errands;
mod exemplars;
mod explain;
mod failure_table;
mod figures;
mod fleet;
mod framing;
mod how_to;
mod ingress;
mod keys;
mod load;
mod login;
mod logout;
mod metrics_page;
mod model;
mod operations;
mod outages;
mod process;
mod readme;
mod redis_deployments;
mod redis_faults;
mod redis_hostile;
mod refresh;
mod refresh_outages;
mod reload;
mod replicas;
mod revocation;
mod saas_token;
mod secrets_stay_secret;
mod service;
mod sick_redis;
mod starting;
mod steps;
mod stopping;
mod store_contract;
mod story;
mod strangers;
mod streaming;
mod tls;
mod token_routes;
mod traces;
mod upgrade;
mod upgrade_tls;
mod webhooks;
mod world;
