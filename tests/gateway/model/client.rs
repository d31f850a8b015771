//! The clients of the model: what they ask a broker, and whether what they are answered is right.
//! An answer is judged by the record as it stands in the store, which only the model can see.

use std::sync::Arc;

use emporix_gateway::broker::{Broker, Demand, Grant, Granted, LoginOptions, Permit};
use emporix_gateway::clock::Timestamp;
use emporix_gateway::config::routes::{Access, Inject, SaasInjection};
use emporix_gateway::error::GatewayError;
use emporix_gateway::session::{Freshness, Handle, Scope, Session, Verified};

use super::emporix::MARK;
use super::journal::{Life, Promise};
use super::replica::LIMITS;
use super::schedule::Action;
use super::simulation::Surroundings;
use super::visitors::{Keeps, VISIT, VISITORS, key_of, present, tenant_of};

/// A question, and what was known when it was asked.
#[derive(Clone)]
pub struct Asked {
    pub number: u64,
    pub action: Action,
    pub visitor: usize,
    pub life: Life,
    pub at: Timestamp,
    keeps: Keeps,
    must_refuse: bool,
    must_refuse_sign_ins: Option<Timestamp>,
    /// Its credential was over at a moment since it was asked.
    was_over: bool,
}

/// What was answered.
#[derive(Debug)]
pub enum Outcome {
    Passed(Result<Permit, GatewayError>),
    Retried(Option<Permit>),
    Granted(Result<Granted, GatewayError>),
    LoggedOut(Result<(), GatewayError>),
}

impl Asked {
    pub fn new(number: u64, action: Action, visitor: usize, life: Life, keeps: &Keeps, around: &Surroundings) -> Self {
        let journal = &around.journal;
        match action {
            Action::Login => journal.asks_login(visitor),
            Action::Logout => journal.asks_logout(visitor, false),
            Action::LogoutAll => journal.asks_logout(visitor, true),
            _ => {}
        }
        let mut asked = Self {
            number,
            action,
            visitor,
            life,
            at: around.now(),
            keeps: keeps.clone(),
            must_refuse: journal.must_refuse(life, visitor),
            must_refuse_sign_ins: journal.must_refuse_sign_ins(life, visitor),
            was_over: false,
        };
        asked.watch(around);
        asked
    }

    /// Looks at the record while the answer is awaited.
    pub fn watch(&mut self, around: &Surroundings) {
        let (handle, scope) = self.credential();
        let needs_tokens = self.action != Action::Login;
        let record = around.store.peek(self.visitor);
        self.was_over |= !record.is_some_and(|it| opens(&it, handle, scope, needs_tokens, around.now()));
    }

    /// The credential that it presents, and the scope that it needs.
    fn credential(&self) -> (&Handle, Scope) {
        match self.action {
            Action::CustomerRequest | Action::Retry | Action::Logout | Action::LogoutAll => {
                (&self.keeps.customer, Scope::Customer)
            }
            Action::Refresh => (&self.keeps.refresh, Scope::Customer),
            Action::VisitorRequest | Action::Login => (&self.keeps.anonymous, Scope::Anonymous),
        }
    }

    /// Asks the broker.
    pub async fn ask(&self, broker: &Arc<Broker>) -> Outcome {
        let tenant = tenant_of(self.visitor);
        let (handle, scope) = self.credential();
        let credential = present(handle, scope);
        let demand = Demand {
            tenant: Some(&tenant),
            access: if scope == Scope::Customer { &Access::Customer } else { &Access::Visitor },
            inject: Inject::Session,
            saas_token: SaasInjection::WhenValid,
            visits: &[VISIT],
            safe: true,
        };
        match self.action {
            Action::CustomerRequest | Action::VisitorRequest => {
                Outcome::Passed(broker.authenticate(&demand, Some(&credential)).await)
            }
            Action::Retry => Outcome::Retried(match &self.keeps.permit {
                Some(permit) => broker.renew_refused(permit, &demand).await.unwrap_or_default(),
                None => None,
            }),
            Action::Refresh => Outcome::Granted(broker.refresh(&tenant, &credential, None).await),
            Action::Login => {
                let grant =
                    Grant::Password { email: "john@example.com".into(), password: "password".to_owned().into() };
                let options = LoginOptions { transport: VISITORS[self.visitor].2, no_browser: false };
                Outcome::Granted(broker.login(&tenant, Some(&credential), grant, options).await)
            }
            Action::Logout => Outcome::LoggedOut(broker.logout(Some(&tenant), &credential).await),
            Action::LogoutAll => Outcome::LoggedOut(broker.logout_all(Some(&tenant), &credential).await),
        }
    }

    /// Judges the answer.
    pub fn judge(&self, outcome: &Outcome, around: &Surroundings) {
        let shown = format!("{outcome:?}");
        if shown.contains(MARK) {
            around.journal.breaks(Promise::SecretsStaySecret, "an answer shows a secret when it is printed");
        }
        match outcome {
            Outcome::Passed(Ok(permit)) => {
                self.judge_logout(permit, around);
                self.judge_permit(permit, around);
            }
            Outcome::Retried(Some(permit)) => self.judge_permit(permit, around),
            Outcome::Granted(Ok(_)) if self.must_refuse => {
                around
                    .journal
                    .breaks(Promise::LogoutAbsorbs, format!("{} was granted tokens after its logout", self.name()));
            }
            Outcome::LoggedOut(Ok(())) => {
                around.journal.logs_out(self.life, self.visitor, true);
                if self.action == Action::LogoutAll {
                    around.journal.logs_out_all(self.life, self.visitor, self.at);
                }
            }
            Outcome::LoggedOut(Err(GatewayError::LogoutUnconfirmed)) => {
                around.journal.logs_out(self.life, self.visitor, false);
            }
            Outcome::Passed(Err(error)) | Outcome::Granted(Err(error)) | Outcome::LoggedOut(Err(error)) => {
                self.judge_refusal(error, around);
            }
            Outcome::Granted(Ok(_)) | Outcome::Retried(None) => {}
        }
    }

    fn judge_logout(&self, permit: &Permit, around: &Surroundings) {
        let signed_out = self.must_refuse_sign_ins.is_some_and(|epoch| {
            permit.scope() == Scope::Customer && permit.signed_in_at().is_some_and(|signed_in_at| signed_in_at <= epoch)
        });
        if self.must_refuse || signed_out {
            around.journal.breaks(Promise::LogoutAbsorbs, format!("{} was served after its logout", self.name()));
        }
    }

    fn judge_permit(&self, permit: &Permit, around: &Surroundings) {
        let issued_to = |token: &str| around.emporix.whose(token).map(|(visitor, _)| visitor);
        let bearer = permit.authorization().to_str().unwrap().strip_prefix("Bearer ").unwrap();
        let saas_token = permit.saas_token().map(|token| token.to_str().unwrap());
        let own = around.emporix.whose(bearer) == Some((self.visitor, permit.scope()))
            && saas_token.is_none_or(|token| issued_to(token) == Some(self.visitor))
            && *permit.key() == key_of(self.visitor)
            && *permit.tenant() == tenant_of(self.visitor);
        if !own {
            around.journal.breaks(Promise::SessionsStayApart, format!("{} was given another's tokens", self.name()));
        }
    }

    /// A 401 says that a credential is over: then it has to be, or about to be at its own client's wish.
    fn judge_refusal(&self, error: &GatewayError, around: &Surroundings) {
        let on_its_way_out = around.journal.was_asked_to_log_out(self.visitor);
        if error.status() == 401 && !self.was_over && !on_its_way_out {
            let what = format!("{} was told `{error}` though its session lives", self.name());
            around.journal.breaks(Promise::FaultsEndNothing, what);
        }
    }

    fn name(&self) -> &'static str {
        VISITORS[self.visitor].0
    }
}

/// Whether `handle` opens `scope` of the record, and there are tokens to be had.
fn opens(record: &Session, handle: &Handle, scope: Scope, needs_tokens: bool, now: Timestamp) -> bool {
    let known = matches!(record.credentials.verify(handle, now), Verified::Valid(granted) if granted >= scope);
    let lives = |tokens: &emporix_gateway::session::TokenSet| {
        tokens.lifetime(LIMITS.refresh_margin).freshness(now) != Freshness::Dead
    };
    known && now < record.expires_at(&LIMITS) && (!needs_tokens || record.tokens(scope).is_some_and(lives))
}
