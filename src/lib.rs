//! The Emporix gateway: a reverse proxy that stands between storefronts and the Emporix commerce API and owns
//! every customer token.
//!
//! The rooms, and the only arrows between them: `main → app → edge → broker → { store, identity } → session`.
//!
//! - [`app`] puts the rooms together and runs them.
//! - [`edge`] is HTTP in and out, and the only room that knows Pingora.
//! - [`broker`] is what happens: authenticate, log in, refresh, log out.
//! - [`store`] is where sessions live; [`identity`] is who issues tokens.
//! - [`session`] is what a session is: pure.
//! - [`clock`], [`config`], [`error`] and [`telemetry`] stand at the side.

pub mod app;
pub mod broker;
pub mod clock;
pub mod config;
pub mod edge;
pub mod error;
pub mod identity;
pub mod session;
pub mod store;
pub mod telemetry;
