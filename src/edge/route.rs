//! Which way a request goes: one radix lookup over the token routes, our own endpoints and the route table.
//! What no rule names needs a visitor, except where tokens could be had: there it is closed.

use std::collections::HashMap;
use std::time::Duration;

use matchit::{InsertError, Router};

use crate::config::routes::{Access, Inject, OnSuccess, RouteLimit, RouteRule, SHIPPED, SaasInjection};
use crate::telemetry::RouteClass;

/// The routes that the gateway answers itself, in Emporix' place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenRoute {
    AnonymousLogin,
    AnonymousRefresh,
    Login,
    SocialLogin,
    Exchange,
    OptIn,
    Refresh,
    Logout,
}

impl TokenRoute {
    /// The label of its metrics.
    pub(super) const fn class(self) -> RouteClass {
        match self {
            Self::AnonymousLogin => RouteClass::AnonymousLogin,
            Self::AnonymousRefresh => RouteClass::AnonymousRefresh,
            Self::Login | Self::SocialLogin | Self::Exchange | Self::OptIn => RouteClass::Login,
            Self::Refresh => RouteClass::Refresh,
            Self::Logout => RouteClass::Logout,
        }
    }
}

/// The gateway's own endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnRoute {
    Session,
    Logout,
    LogoutAll,
}

/// An API route.
#[derive(Clone, Debug)]
pub(super) struct ApiRoute {
    pub(super) access: Access,
    pub(super) inject: Inject,
    pub(super) saas_token: SaasInjection,
    pub(super) max_body_bytes: Option<u64>,
    pub(super) read_timeout: Option<Duration>,
    pub(super) limit: RouteLimit,
    pub(super) on_success: OnSuccess,
}

impl ApiRoute {
    /// Whether the gateway reads the body itself: for what it names.
    pub(super) fn reads_body(&self) -> bool {
        self.limit == RouteLimit::SignIn || self.on_success == OnSuccess::EndNamedSessions
    }

    /// The label of its metrics.
    pub(super) const fn class(&self) -> RouteClass {
        match self.access {
            Access::Service(_) => RouteClass::Service,
            Access::Guest => RouteClass::Guest,
            Access::Customer => RouteClass::Customer,
            Access::Visitor | Access::Deny => RouteClass::Visitor,
        }
    }
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub(super) enum Route {
    Token(TokenRoute),
    Own(OwnRoute),
    /// Where Emporix delivers its events.
    Webhook,
    Api(ApiRoute),
    /// An API route for back-office callers: on the internal listener alone.
    Service(ApiRoute),
    Closed,
}

/// A route, and what its template took from the path.
#[derive(Debug)]
pub(super) struct Found<'t, 'p> {
    pub(super) route: &'t Route,
    /// The segment at `{tenant}`.
    pub(super) tenant: Option<&'p str>,
    /// The segment at `{token}`.
    pub(super) token: Option<&'p str>,
    /// The template's other methods, when this one is not among them.
    pub(super) wrong_method: bool,
    /// The rule that says so, where one does.
    pub(super) rule: Option<&'t Rule>,
}

/// What is done for the methods of a template.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) methods: Vec<&'static str>,
    route: Route,
    pub(super) source: RuleSource,
    /// Its template, as it was written.
    pub(super) path: String,
}

/// Who made a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleSource {
    BuiltIn,
    /// The deployment: its rule at this index.
    Own(usize),
    Shipped,
}

/// What is wrong with the rules: whose, and why.
#[derive(Debug)]
pub(super) struct RuleFault {
    pub(super) source: RuleSource,
    pub(super) message: String,
}

/// The routes, ready to be searched.
pub(super) struct RouteTable {
    rules: Router<Vec<Rule>>,
    fallback: Route,
}

const TOKEN_ROUTES: [(&str, &str, TokenRoute); 8] = [
    ("/customerlogin/auth/anonymous/login", "GET", TokenRoute::AnonymousLogin),
    ("/customerlogin/auth/anonymous/refresh", "GET", TokenRoute::AnonymousRefresh),
    ("/customer/{tenant}/login", "POST", TokenRoute::Login),
    ("/customer/{tenant}/socialLogin", "POST", TokenRoute::SocialLogin),
    ("/customer/{tenant}/exchangeauthtoken", "POST", TokenRoute::Exchange),
    ("/customer/{tenant}/signup/optin/{token}", "GET", TokenRoute::OptIn),
    ("/customer/{tenant}/refreshauthtoken", "GET", TokenRoute::Refresh),
    ("/customer/{tenant}/logout", "GET", TokenRoute::Logout),
];

const OWN_ROUTES: [(&str, &str, OwnRoute); 3] = [
    ("/_gateway/session", "GET", OwnRoute::Session),
    ("/_gateway/logout", "POST", OwnRoute::Logout),
    ("/_gateway/logout-all", "POST", OwnRoute::LogoutAll),
];

const WEBHOOK_ROUTE: &str = "/_gateway/webhooks/emporix/{tenant}";

/// Where raw tokens could be had: what no rule opens there stays closed.
const CLOSED_FAMILIES: [&str; 6] = ["customer", "caas-customer", "customerlogin", "oauth", "mcp", "_gateway"];

/// What no rule can open.
const CLOSED: [&str; 3] =
    ["/oauth/token", "/customer/{tenant}/assisted-buying-login", "/caas-customer/{tenant}/assisted-buying-login"];

impl RouteTable {
    /// The built-in routes, then `own` rules, then the shipped table.
    ///
    /// # Errors
    /// Everything that is wrong with the rules.
    pub(super) fn new(own: &[RouteRule]) -> Result<Self, Vec<RuleFault>> {
        let mut templates = Templates::default();
        for (path, method, route) in TOKEN_ROUTES {
            templates.add(&Rule::built_in(path, vec![method], Route::Token(route)));
            if let Some(rest) = path.strip_prefix("/customer/") {
                let legacy = format!("/caas-customer/{rest}");
                templates.add(&Rule::built_in(&legacy, vec![method], Route::Token(route)));
            }
        }
        for (path, method, route) in OWN_ROUTES {
            templates.add(&Rule::built_in(path, vec![method], Route::Own(route)));
        }
        templates.add(&Rule::built_in(WEBHOOK_ROUTE, vec!["POST"], Route::Webhook));
        for path in CLOSED {
            templates.add(&Rule::built_in(path, Vec::new(), Route::Closed));
        }
        let shipped: Vec<RouteRule> = serde_saphyr::from_str(SHIPPED)
            .map_err(|error| vec![RuleFault { source: RuleSource::Shipped, message: error.to_string() }])?;
        let own = own.iter().enumerate().map(|(index, rule)| (RuleSource::Own(index), rule));
        let mut faults = Vec::new();
        for (source, rule) in own.chain(shipped.iter().map(|rule| (RuleSource::Shipped, rule))) {
            match templates.check(&rule.path) {
                Ok(()) => templates.add(&compiled(rule, source)),
                Err(message) => faults.push(RuleFault { source, message }),
            }
        }
        templates.name_tenants("/{service}/{tenant}");
        let (rules, contradictions) = templates.into_router();
        faults.extend(contradictions);
        if faults.is_empty() { Ok(Self { rules, fallback: Route::Api(DEFAULT) }) } else { Err(faults) }
    }

    /// The route of `method` on `path`.
    pub(super) fn find<'t, 'p>(&'t self, method: &str, path: &'p str) -> Found<'t, 'p> {
        let Ok(found) = self.rules.at(path) else {
            return Found { route: self.unnamed(path), tenant: None, token: None, wrong_method: false, rule: None };
        };
        let (tenant, token) = (found.params.get("tenant"), found.params.get("token"));
        let rule = found.value.iter().find(|rule| rule.methods.is_empty() || rule.methods.contains(&method));
        match rule {
            Some(Rule { route: Route::Api(_) | Route::Service(_), .. }) if !is_plain_service(path) => {
                Found { route: &Route::Closed, tenant, token, wrong_method: false, rule }
            }
            Some(known) => Found { route: &known.route, tenant, token, wrong_method: false, rule },
            // A template of named methods says nothing of the others: they are as if no rule named them.
            None => {
                let wrong_method = !found.value.is_empty() && is_closed_family(path);
                Found { route: self.unnamed(path), tenant, token, wrong_method, rule }
            }
        }
    }

    fn unnamed(&self, path: &str) -> &Route {
        if is_closed_family(path) || !is_plain_service(path) { &Route::Closed } else { &self.fallback }
    }
}

const DEFAULT: ApiRoute = ApiRoute {
    access: Access::Visitor,
    inject: Inject::Session,
    saas_token: SaasInjection::Never,
    max_body_bytes: None,
    read_timeout: None,
    limit: RouteLimit::None,
    on_success: OnSuccess::Nothing,
};

fn first_segment(path: &str) -> &str {
    path[1..].split('/').next().unwrap_or_default()
}

/// A service in another spelling could mean the same upstream, and slip past the rules for it.
fn is_plain_service(path: &str) -> bool {
    first_segment(path).bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_closed_family(path: &str) -> bool {
    let service = first_segment(path);
    CLOSED_FAMILIES.contains(&service)
}

impl Rule {
    fn built_in(path: &str, methods: Vec<&'static str>, route: Route) -> Self {
        Self { methods, route, source: RuleSource::BuiltIn, path: path.to_owned() }
    }
}

fn compiled(rule: &RouteRule, source: RuleSource) -> Rule {
    let RouteRule { path, methods, access, inject, saas_token, max_body_bytes, read_timeout, limit, on_success } =
        rule.clone();
    let api = |access| ApiRoute { access, inject, saas_token, max_body_bytes, read_timeout, limit, on_success };
    let route = match access {
        Access::Deny => Route::Closed,
        Access::Service(_) => Route::Service(api(access)),
        access => Route::Api(api(access)),
    };
    Rule { methods: methods.iter().map(|method| method.as_str()).collect(), route, source, path }
}

/// A rule's template: literal segments, whole-segment parameters, `/**` at the end.
fn check_template(path: &str) -> Result<(), String> {
    let body = path.strip_suffix("/**").unwrap_or(path);
    let segment_fits = |segment: &str| match segment.strip_prefix('{') {
        Some(rest) => {
            rest.strip_suffix('}').is_some_and(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase()))
        }
        None => !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b)),
    };
    let fits = body.strip_prefix('/').is_some_and(|body| body.split('/').all(segment_fits));
    if fits {
        Ok(())
    } else {
        Err(format!("route {path}: expected segments, {{name}} for one segment, /** at the end"))
    }
}

/// Templates in order of their first mention, each with its rules in order of theirs.
#[derive(Default)]
struct Templates {
    known: Vec<(String, Vec<Rule>)>,
    /// Where the template of each shape stands.
    places: HashMap<String, usize>,
}

impl Templates {
    /// Adds a rule under every spelling of its template: with a trailing slash too, and `/**` as anything below.
    fn add(&mut self, rule: &Rule) {
        let base = rule.path.strip_suffix("/**");
        let path = base.unwrap_or(&rule.path);
        self.push(path.to_owned(), rule);
        self.push(format!("{path}/"), rule);
        if base.is_some() {
            self.push(format!("{path}/{{*rest}}"), rule);
        }
    }

    /// Whether a rule can be added for the template.
    fn check(&self, path: &str) -> Result<(), String> {
        check_template(path)?;
        if self.is_token_route(path) {
            return Err(format!("route {path}: the gateway answers it itself"));
        }
        Ok(())
    }

    /// The templates as a router, and each rule that contradicts another one.
    fn into_router(self) -> (Router<Vec<Rule>>, Vec<RuleFault>) {
        let (mut router, mut faults) = (Router::new(), Vec::new());
        let mut placed: HashMap<String, RuleSource> = HashMap::new();
        for (template, rules) in self.known {
            let source = rules.first().map_or(RuleSource::Shipped, |rule| rule.source);
            match router.insert(template.clone(), rules) {
                Ok(()) => drop(placed.insert(template, source)),
                Err(error) => {
                    // The shipped rules agree with each other: what contradicts one of them is a deployment's own.
                    let other = match &error {
                        InsertError::Conflict { with } => placed.get(with).copied(),
                        _ => None,
                    };
                    let source = other.filter(|_| source == RuleSource::Shipped).unwrap_or(source);
                    if !faults.iter().any(|known: &RuleFault| known.source == source) {
                        faults.push(RuleFault { source, message: format!("route {template}: {error}") });
                    }
                }
            }
        }
        (router, faults)
    }

    /// Lets paths below `base` name their tenant, without a rule for them.
    fn name_tenants(&mut self, base: &str) {
        for template in [base.to_owned(), format!("{base}/"), format!("{base}/{{*rest}}")] {
            self.rules_of(template);
        }
    }

    fn is_token_route(&self, path: &str) -> bool {
        let path = path.strip_suffix("/**").unwrap_or(path);
        let same = self.places.get(&shape(path)).and_then(|place| self.known.get(*place));
        same.is_some_and(|(_, rules)| rules.iter().any(|rule| matches!(rule.route, Route::Token(_))))
    }

    fn push(&mut self, template: String, rule: &Rule) {
        self.rules_of(template).push(rule.clone());
    }

    fn rules_of(&mut self, template: String) -> &mut Vec<Rule> {
        let place = *self.places.entry(shape(&template)).or_insert(self.known.len());
        if place == self.known.len() {
            self.known.push((template, Vec::new()));
        }
        &mut self.known[place].1
    }
}

/// The same for templates that match the same paths, whatever their parameters are called.
fn shape(template: &str) -> String {
    let is_parameter = |segment: &str| segment.starts_with('{') && !segment.starts_with("{*");
    let segments = template.split('/').map(|segment| if is_parameter(segment) { "{}" } else { segment });
    segments.collect::<Vec<&str>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> RouteTable {
        RouteTable::new(&[]).unwrap()
    }

    fn token(method: &str, path: &str) -> Option<TokenRoute> {
        match table().find(method, path).route {
            Route::Token(route) => Some(*route),
            _ => None,
        }
    }

    fn access(method: &str, path: &str) -> Option<Access> {
        match table().find(method, path).route {
            Route::Api(route) => Some(route.access.clone()),
            Route::Closed => Some(Access::Deny),
            _ => None,
        }
    }

    #[test]
    fn every_token_route_ends_here_with_and_without_a_trailing_slash() {
        for (path, method, route) in TOKEN_ROUTES {
            let path = path.replace("{tenant}", "acme").replace("{token}", "abc");
            assert_eq!(token(method, &path), Some(route), "{path}");
            assert_eq!(token(method, &format!("{path}/")), Some(route), "{path}/");
        }
        assert_eq!(token("POST", "/caas-customer/acme/login"), Some(TokenRoute::Login));
    }

    #[test]
    fn no_spelling_and_no_newer_endpoint_hands_out_tokens() {
        for (method, path) in [
            ("POST", "/oauth/token"),
            ("POST", "/oauth/token/"),
            ("POST", "/oauth/anything"),
            ("POST", "/customer/acme/assisted-buying-login"),
            ("POST", "/customer/acme/Login"),
            ("GET", "/customer/acme/login"),
            ("POST", "/customer/acme/newlogin"),
            ("POST", "/Customer/acme/login"),
            ("POST", "/OAUTH/token"),
            ("GET", "/customerlogin/auth/anonymous/other"),
            ("GET", "/customerlogin"),
            ("GET", "/mcp/shop/acme/secret/mcp"),
            ("GET", "/_gateway/unknown"),
            ("POST", "/customer;x/acme/login"),
        ] {
            assert_eq!(access(method, path), Some(Access::Deny), "{method} {path}");
        }
    }

    #[test]
    fn the_shipped_table_covers_every_service() {
        for (method, path, expected) in [
            ("GET", "/product/acme/products", Access::Guest),
            ("POST", "/product/acme/products", Access::Visitor),
            ("GET", "/brand/brands", Access::Guest),
            ("GET", "/brand/brands/7", Access::Guest),
            ("GET", "/labels", Access::Guest),
            ("GET", "/labels/7", Access::Guest),
            ("POST", "/cart/acme/carts", Access::Visitor),
            ("GET", "/reward-points/public/customer", Access::Customer),
            ("GET", "/reward-points/acme/redeemOptions", Access::Visitor),
            ("POST", "/sequential-id/sequenceSchemaBatch/nextIds", Access::Visitor),
            ("GET", "/customer/acme/me", Access::Visitor),
            ("GET", "/customer/acme/me/addresses", Access::Customer),
            ("POST", "/customer/acme/password/reset/", Access::Visitor),
            ("POST", "/customer/acme/signup/optin/refresh_token", Access::Visitor),
            ("GET", "/some-new-service/acme/things", Access::Visitor),
            ("GET", "/tenantless", Access::Visitor),
        ] {
            assert_eq!(access(method, path), Some(expected), "{method} {path}");
        }
    }

    #[test]
    fn every_service_of_the_api_is_named_and_open() {
        const WITH_TENANT: [&str; 42] = [
            "ai-rag-indexer",
            "ai-service",
            "approval",
            "availability",
            "cart",
            "catalog",
            "category",
            "checkout",
            "configuration",
            "country",
            "coupon",
            "currency",
            "customer-management",
            "customer-segment",
            "fee",
            "iam",
            "importtool",
            "indexing",
            "invoice",
            "media",
            "order-v2",
            "payment-gateway",
            "pick-pack",
            "price",
            "product",
            "quote",
            "return",
            "reward-points",
            "schema",
            "sepa-export",
            "sequential-id",
            "session-context",
            "shipping",
            "shoppinglist",
            "site",
            "tax",
            "unit-handling",
            "vendor",
            "webhook",
            "customer",
            "caas-customer",
            "brand",
        ];
        let table = table();
        for service in WITH_TENANT {
            let path = match service {
                "customer" | "caas-customer" => format!("/{service}/acme/me"),
                "brand" => "/brand/brands".to_owned(),
                _ => format!("/{service}/acme/things/7"),
            };
            let found = table.find("GET", &path);
            assert!(matches!(found.route, Route::Api(_)), "{path}");
            assert_eq!(found.tenant, (service != "brand").then_some("acme"), "{path}");
            assert!(SHIPPED.contains(&format!("\"/{service}/")), "{service} is named in the shipped table");
        }
    }

    #[test]
    fn templates_give_the_tenant_and_the_token() {
        let table = table();
        let found = table.find("GET", "/customer/acme/signup/optin/abc-1");
        assert_eq!((found.tenant, found.token), (Some("acme"), Some("abc-1")));
        assert_eq!(table.find("GET", "/brand/brands").tenant, None);
        assert_eq!(table.find("GET", "/cart/acme").tenant, Some("acme"));
    }

    #[test]
    fn a_deployments_own_rule_comes_before_the_shipped_one_but_opens_no_token_route() {
        let own = |path: &str, access| RouteRule {
            path: path.into(),
            methods: Vec::new(),
            access,
            inject: Inject::Session,
            saas_token: SaasInjection::Never,
            max_body_bytes: None,
            read_timeout: None,
            limit: RouteLimit::None,
            on_success: OnSuccess::Nothing,
        };
        let rules = [own("/product/{tenant}/**", Access::Customer), own("/oauth/token", Access::Guest)];
        let table = RouteTable::new(&rules).unwrap();
        assert!(
            matches!(table.find("GET", "/product/acme/x").route, Route::Api(route) if route.access == Access::Customer)
        );
        assert!(matches!(table.find("POST", "/oauth/token").route, Route::Closed));
        assert!(RouteTable::new(&[own("product/**/x", Access::Guest)]).is_err());
        for path in ["/customer/{tenant}/refreshauthtoken", "/customer/{name}/login/**"] {
            assert!(RouteTable::new(&[own(path, Access::Guest)]).is_err(), "{path}");
        }
    }
}
