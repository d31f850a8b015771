//! What the errors of Redis and of the way to it mean, and how they are told: never with what was sent.

use std::error::Error;
use std::io;
use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use rustls::CertificateError;

use crate::store::StoreError;

const NO_ANSWER: &str = "no answer in time";

/// Whether only another connection, perhaps to another server, can do better.
pub(super) fn is_of_the_line(error: &RedisError) -> bool {
    is_refusal(error) || error.is_io_error() || error.is_unrecoverable_error()
}

/// Whether the server itself says that it does not serve, or not us.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    let moved_on = matches!(
        error.kind(),
        ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
    );
    moved_on || error.code() == Some("NOAUTH")
}

/// Whether the server knows us not, or lets us not do that; or we know it not.
pub(super) fn is_denied(error: &RedisError) -> bool {
    let denied = [Some("NOAUTH"), Some("WRONGPASS"), Some("NOPERM")].contains(&error.code());
    denied || error.kind() == ErrorKind::AuthenticationFailed || is_distrusted(error)
}

/// Whether the server's certificate stands on no authority that is trusted. One that is over, or another host's, fares no
/// better with others. Of what broke a cluster's lines there is a text and nothing else.
fn is_distrusted(error: &RedisError) -> bool {
    use CertificateError::{BadSignature, UnknownIssuer};
    let told = error.to_string();
    [UnknownIssuer, BadSignature].iter().any(|why| told.contains(&rustls::Error::from(why.clone()).to_string()))
}

/// Says what an error is about, not its detail: that may quote what was sent, and so may a code that nobody knows.
pub(super) fn unavailable(error: &RedisError) -> StoreError {
    const TOLD: [&str; 8] = ["NOAUTH", "WRONGPASS", "NOPERM", "OOM", "MISCONF", "NOREPLICAS", "BUSY", "WRONGTYPE"];
    let code = error.code().filter(|code| TOLD.contains(code));
    let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
    let about = match error.kind() {
        _ if error.is_timeout() => NO_ANSWER.to_owned(),
        ErrorKind::Io => of_the_way(error),
        ErrorKind::Parse => "what answers there does not speak as Redis does".to_owned(),
        kind if is_no_cluster(error) => format!("{kind:?}, it is no cluster"),
        kind => format!("{kind:?}"),
    };
    StoreError::Unavailable(format!("{about}{code}"))
}

/// That an answer did not come in time.
pub(super) fn late() -> StoreError {
    StoreError::Unavailable(NO_ANSWER.to_owned())
}

/// What is wrong with the way to Redis: the name, the connection or its encryption.
fn of_the_way(error: &RedisError) -> String {
    let source = error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    let Some(source) = source.and_then(|source| source.downcast_ref::<io::Error>()) else {
        return "no connection".to_owned();
    };
    if let Some(tls) = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return format!("no encrypted connection: {tls}");
    }
    // The resolver's errors are of no kind of their own.
    if source.to_string().starts_with("failed to lookup address") {
        return "the name of its host cannot be resolved".to_owned();
    }
    source.kind().to_string()
}

fn is_no_cluster(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("cluster support disabled"))
}
