//! The labels of metrics: each is an enum, so the number of series is known when the program is compiled.
//! No value names a tenant, a customer, a session or a path.

/// The values of one label.
pub trait Label: Copy + 'static {
    /// Every value, in order of [`Label::index`].
    const ALL: &'static [Self];
    /// The value as Prometheus shows it.
    fn text(self) -> &'static str;
    /// Its place in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident { $($value:ident = $text:literal),+ $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the text of each value says what it is")]
        pub enum $name { $($value),+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$value),+];
            fn text(self) -> &'static str {
                match self { $(Self::$value => $text),+ }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}

labels! {
    /// The kind of route a request took.
    RouteClass {
        Guest = "guest", Visitor = "visitor", Customer = "customer", AnonymousLogin = "anonymous_login",
        AnonymousRefresh = "anonymous_refresh", Login = "login", Refresh = "refresh", Logout = "logout",
        Own = "own", Preflight = "preflight", Service = "service", None = "none",
    }
    /// How a request ended.
    Outcome {
        Success = "success", ClientError = "client_error", ServerError = "server_error",
        UpstreamError = "upstream_error", Aborted = "aborted",
    }
    /// What authentication decided.
    Decision {
        Session = "session", SharedGuest = "shared_guest", Missing = "missing", Dead = "dead",
        Forbidden = "forbidden", Unknowable = "unknowable", Service = "service", Stranger = "stranger",
    }
    /// The ways to sign in.
    Flow { Password = "password", Social = "social", Exchange = "exchange", OptIn = "opt_in" }
    /// How a sign-in ended.
    LoginOutcome { Success = "success", Refused = "refused", Failed = "failed" }
    /// Which half of a session.
    Half { Anonymous = "anonymous", Customer = "customer" }
    /// How a refresh ended.
    RefreshOutcome {
        Renewed = "renewed", Recovered = "recovered", Joined = "joined", Followed = "followed",
        Superseded = "superseded", Rejected = "rejected", Unavailable = "unavailable", Unknown = "unknown",
        Lost = "lost",
    }
    /// What was asked of the store.
    StoreOperation {
        Load = "load", Save = "save", Remove = "remove", Lease = "lease", Index = "index", Walk = "walk", Note = "note",
    }
    /// How it answered.
    StoreOutcome { Success = "success", Conflict = "conflict", Failed = "failed" }
    /// What the hot cache did for a request.
    CacheOutcome { Hit = "hit", Miss = "miss", Revalidated = "revalidated", Grace = "grace" }
    /// What happened to a session.
    SessionEvent {
        VisitorBorn = "visitor_born", CustomerSignedIn = "customer_signed_in", CustomerAdopted = "customer_adopted",
        LoggedOut = "logged_out", RevokedElsewhere = "revoked_elsewhere", CustomerLost = "customer_lost",
        RefreshReused = "refresh_reused", RevokedByOperator = "revoked_by_operator",
    }
    /// A call of Emporix' token endpoints.
    EmporixCall {
        AnonymousLogin = "anonymous_login", AnonymousRefresh = "anonymous_refresh", Login = "login",
        SocialLogin = "social_login", Exchange = "exchange", OptIn = "opt_in", Refresh = "refresh", Revoke = "revoke",
        Introspect = "introspect", Service = "service",
    }
    /// How it ended.
    CallOutcome { Success = "success", Refused = "refused", Unavailable = "unavailable", Unknown = "unknown" }
    /// Why a call of Emporix was not needed.
    Saved {
        AnonymousReused = "anonymous_reused", RefreshNotDue = "refresh_not_due", RefreshJoined = "refresh_joined",
        GuestShared = "guest_shared",
    }
    /// What a breaker stands in front of.
    Dependency {
        Store = "store", AnonymousLogin = "anonymous_login", AnonymousRefresh = "anonymous_refresh", Login = "login",
        SocialLogin = "social_login", Exchange = "exchange", OptIn = "opt_in", Refresh = "refresh", Revoke = "revoke", Introspect = "introspect", Service = "service",
    }
    /// What a breaker did.
    BreakerEvent { Opened = "opened", Closed = "closed", Refused = "refused" }
    /// Whether a replica of Redis had a write in time.
    Replication { Acknowledged = "acknowledged", Late = "late" }
    /// How a replica came to know that a session ended elsewhere.
    RevocationPath { Message = "message", Revalidation = "revalidation" }
    /// Whose way of asking for a verdict.
    Dialect { Nginx = "nginx", Traefik = "traefik", Envoy = "envoy", Haproxy = "haproxy" }
    /// What a proxy was told.
    Verdict { Pass = "pass", Refused = "refused", Unknowable = "unknowable" }
    /// What became of a span.
    SpanOutcome { Exported = "exported", Failed = "failed", Dropped = "dropped" }
    /// What became of a configuration that was read again.
    Reloaded { Applied = "applied", Refused = "refused" }
    /// A listener that can have a certificate.
    Certified { Public = "public", Internal = "internal" }
    /// Which rate was exceeded.
    Limited { Address = "address", Account = "account", Visitors = "visitors" }
    /// An event that Emporix delivered; `other` where it names none of these, or is not believed.
    WebhookEvent {
        Created = "customer.created", Updated = "customer.updated", Deleted = "customer.deleted",
        PasswordReset = "customer.password-reset", EmailChange = "customer.email-change",
        EmailChangeRequest = "customer.email-change-request", Other = "other",
    }
    /// What became of it.
    WebhookOutcome {
        Revoked = "revoked", Noted = "noted", Ignored = "ignored", Repeated = "repeated", Refused = "refused",
        Failed = "failed",
    }
}

impl EmporixCall {
    /// Whether it signs somebody in.
    #[must_use]
    pub const fn signs_in(self) -> bool {
        matches!(self, Self::Login | Self::SocialLogin | Self::Exchange | Self::OptIn)
    }
}
