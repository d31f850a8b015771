//! The simulated Emporix: what it was started with, and everything it remembers.
//! All memory is behind one lock, so each handler sees and leaves a consistent world.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::{
    carts::Cart, faults::Fault, intake::Received, operation::Operation, saas::SaasSigner, settings::Settings,
    tokens::TokenBook,
};

/// One running simulator, shared by all handlers.
pub(crate) struct Simulator {
    /// The tenants that exist.
    pub(crate) tenants: Vec<String>,
    /// The API keys anonymous logins may use.
    pub(crate) client_ids: Vec<String>,
    /// What every client of `/oauth/token` has to know.
    pub(crate) client_secret: String,
    /// Mints and checks SaaS tokens.
    pub(crate) saas: SaasSigner,
    world: Mutex<World>,
}

/// Everything that changes while the simulator runs.
#[derive(Default)]
pub(crate) struct World {
    /// The behaviour asked for by the current test.
    pub(crate) settings: Settings,
    /// All tokens.
    pub(crate) tokens: TokenBook,
    /// All customers of all tenants.
    pub(crate) customers: Vec<Customer>,
    /// All carts, by id.
    pub(crate) carts: HashMap<String, Cart>,
    /// What anonymous login said about site, currency and so on, by session id.
    pub(crate) contexts: HashMap<String, Value>,
    /// The opt-in links already followed, by tenant and token.
    pub(crate) spent_optins: HashSet<(String, String)>,
    /// How often each refresh token of a customer was presented to be redeemed.
    pub(crate) redeems: HashMap<String, u64>,
    /// How often each operation was called.
    pub(crate) calls: BTreeMap<Operation, u64>,
    /// The latest requests, oldest first.
    pub(crate) requests: VecDeque<Received>,
    /// The misbehaviour asked for, first match wins.
    pub(crate) faults: Vec<Fault>,
}

/// A registered shopper.
pub(crate) struct Customer {
    /// Where the account exists.
    pub(crate) tenant: String,
    /// The `customerNumber`, also the subject of the SaaS token.
    pub(crate) number: String,
    /// The login name.
    pub(crate) email: String,
    /// The password, in plain text: these people do not exist.
    pub(crate) password: String,
    /// What `/me` shows.
    pub(crate) profile: Value,
}

/// The customer every tenant has, used by social login and opt-in.
pub(crate) const JOHN: &str = "13869000";
/// The other customer every tenant has, used by token exchange.
pub(crate) const JANE: &str = "C0033";

impl Simulator {
    /// A simulator in which every tenant knows John and Jane.
    pub(crate) fn new(tenants: Vec<String>, client_ids: Vec<String>, client_secret: String, saas: SaasSigner) -> Self {
        let mut world = World::default();
        for tenant in &tenants {
            for (number, first, last) in [(JOHN, "John", "Doe"), (JANE, "Jane", "Roe")] {
                let email = format!("{first}.{last}@example.com").to_lowercase();
                let details = json!({"firstName": first, "lastName": last});
                world.customers.push(Customer::new(tenant, number, &email, "password123", &details));
            }
        }
        Self { tenants, client_ids, client_secret, saas, world: Mutex::new(world) }
    }

    /// The world, for as long as the guard lives.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the tenant exists.
    pub(crate) fn has_tenant(&self, tenant: &str) -> bool {
        self.tenants.iter().any(|known| known == tenant)
    }
}

impl World {
    /// The customer with this number.
    pub(crate) fn customer(&mut self, tenant: &str, number: &str) -> Option<&mut Customer> {
        self.customers.iter_mut().find(|known| known.tenant == tenant && known.number == number)
    }

    /// The customer with this e-mail address, which is compared without case.
    pub(crate) fn customer_by_email(&self, tenant: &str, email: &str) -> Option<&Customer> {
        self.customers.iter().find(|known| known.tenant == tenant && known.email.eq_ignore_ascii_case(email))
    }
}

impl Customer {
    /// A customer whose profile is the documented sample with `details` laid over it.
    pub(crate) fn new(tenant: &str, number: &str, email: &str, password: &str, details: &Value) -> Self {
        let mut profile = json!({
            "title": "MR", "contactPhone": "123456789", "company": "Emporix", "preferredLanguage": "en_US",
            "preferredCurrency": "EUR", "preferredSite": "main", "metadata": {"mixins": {}, "version": 1},
            "mixins": {}, "customerNumber": number, "id": number, "accounts": [{"id": email}],
            "contactEmail": email, "businessModel": "B2C", "active": true, "onHold": false,
        });
        overlay(&mut profile, details);
        Self {
            tenant: tenant.to_owned(),
            number: number.to_owned(),
            email: email.to_owned(),
            password: password.to_owned(),
            profile,
        }
    }
}

/// Replaces the top-level fields of `target` that `changes` names.
pub(crate) fn overlay(target: &mut Value, changes: &Value) {
    if let (Some(target), Some(changes)) = (target.as_object_mut(), changes.as_object()) {
        target.extend(changes.clone());
    }
}

/// The current time in milliseconds; everything below a handler receives it as an argument.
#[expect(clippy::disallowed_methods, reason = "the simulator's one look at the clock")]
pub(crate) fn now() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since_epoch.as_secs() * 1000 + u64::from(since_epoch.subsec_millis())
}
