//! The operations of Emporix' authentication surface, told apart by path.
//! Calls are counted and faults are injected per operation; whatever is not about tokens is `api`.

use http::Method;
use serde::{Deserialize, Serialize};

/// One kind of call, as counts and faults name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    AnonymousLogin,
    AnonymousRefresh,
    Login,
    SocialLogin,
    Exchange,
    Optin,
    Refresh,
    Logout,
    Validate,
    Oauth,
    Signup,
    Api,
}

impl Operation {
    /// Every operation, in the order counts are shown.
    pub(crate) const ALL: [Self; 12] = [
        Self::AnonymousLogin,
        Self::AnonymousRefresh,
        Self::Login,
        Self::SocialLogin,
        Self::Exchange,
        Self::Optin,
        Self::Refresh,
        Self::Logout,
        Self::Validate,
        Self::Oauth,
        Self::Signup,
        Self::Api,
    ];

    /// The operation a request asks for.
    pub(crate) fn of(method: &Method, path: &str) -> Self {
        let segments: Vec<_> = path.split('/').skip(1).collect();
        match segments.as_slice() {
            ["customerlogin", "auth", "anonymous", "login"] => Self::AnonymousLogin,
            ["customerlogin", "auth", "anonymous", "refresh"] => Self::AnonymousRefresh,
            ["customer", _, "login"] => Self::Login,
            ["customer", _, "socialLogin"] => Self::SocialLogin,
            ["customer", _, "exchangeauthtoken"] => Self::Exchange,
            ["customer", _, "signup", "optin", _] if method == Method::GET => Self::Optin,
            ["customer", _, "refreshauthtoken"] => Self::Refresh,
            ["customer", _, "logout"] => Self::Logout,
            ["customer", _, "validateauthtoken"] => Self::Validate,
            ["customer", _, "signup"] => Self::Signup,
            ["oauth", "token"] => Self::Oauth,
            _ => Self::Api,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opt_in_logs_in_but_asking_for_another_mail_does_not() {
        let path = "/customer/acme/signup/optin/refresh_token";

        assert_eq!(Operation::of(&Method::POST, path), Operation::Api);
        assert_eq!(Operation::of(&Method::GET, "/customer/acme/signup/optin/optin-1"), Operation::Optin);
    }
}
