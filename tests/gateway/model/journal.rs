//! What happened, as an observer at the seams sees it, and which promise it broke.
//! Judges by what was asked and answered there alone; of the broker it knows nothing.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use emporix_gateway::clock::{Clock, Timestamp};
use emporix_gateway::session::{Scope, Session, SessionKey};

use super::emporix::{Emporix, Origin};
use super::visitors::{VISITORS, customer_of, visitor_of};

/// What the gateway promises of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// One redeem per generation while its leader lives and is not suspended past its lease; otherwise one recovery.
    OneRedeem,
    /// A half is saved over the generation it was made from, and over no other.
    SavesFollowGenerations,
    /// Logged out is absorbing.
    LogoutAbsorbs,
    /// What cannot be known is never taken for what does not exist.
    FaultsEndNothing,
    /// No secret in a log line, an error or `Debug` output.
    SecretsStaySecret,
    /// A session serves its own visitor, in its own tenant.
    SessionsStayApart,
    /// Every request is answered in the end.
    RequestsAreAnswered,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    pub promise: Promise,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.what)
    }
}

/// One life of a replica: a crash ends it.
pub type Life = (usize, u32);

/// Half a session, as the model names it.
pub type Half = (usize, Scope);

/// A refresh token on its way to Emporix.
struct Send {
    life: Life,
    half: Half,
    refresh: String,
    /// Emporix took the token for a redeem, whatever it answered.
    spent: bool,
    /// Its leader does not know, or could not say, what came of it.
    unsettled: bool,
}

/// The write-ahead of a send, and how long the lease is held.
#[derive(Clone, Copy)]
struct Declared {
    used: bool,
    held_until: Timestamp,
}

/// A logout that was answered.
#[derive(Clone, Copy)]
struct LoggedOut {
    at: Timestamp,
    life: Life,
    confirmed: bool,
}

#[derive(Default)]
struct Facts {
    violation: Option<Violation>,
    story: Vec<String>,
    sends: Vec<Send>,
    declared: HashMap<(Life, Half), Declared>,
    dead: HashSet<Life>,
    born: HashMap<Life, Timestamp>,
    /// Token sets that stood in a record, by access token.
    entered: HashSet<String>,
    removed: HashSet<SessionKey>,
    logout_asked: HashSet<usize>,
    login_asked: HashSet<usize>,
    /// Halves whose refresh token Emporix refused, or whose recovery was orphaned as well.
    over: HashSet<Half>,
    logged_out: HashMap<usize, LoggedOut>,
    /// Customers' sessions that `logout_all` ended: signed in up to the first instant, answered at the second.
    all_logged_out: HashMap<usize, (Timestamp, LoggedOut)>,
    heard: HashSet<(Life, usize)>,
    met: HashSet<Sight>,
}

/// What an exploration has to come across, or it has seen nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sight {
    LeaseHeldElsewhere,
    AnswerOfARedeemLost,
    Recovery,
    OrphanedRecovery,
    ConflictingSave,
    SaveAfterTheEnd,
    LogoutWithoutTheStore,
    LogoutEverywhere,
}

impl Sight {
    pub const ALL: [Self; 8] = [
        Self::LeaseHeldElsewhere,
        Self::AnswerOfARedeemLost,
        Self::Recovery,
        Self::OrphanedRecovery,
        Self::ConflictingSave,
        Self::SaveAfterTheEnd,
        Self::LogoutWithoutTheStore,
        Self::LogoutEverywhere,
    ];
}

/// The observer.
pub struct Journal {
    facts: Mutex<Facts>,
    clock: Arc<dyn Clock>,
}

/// Serving a session that ended elsewhere goes on for no longer, however broken the store is.
const HOT_GRACE: Duration = Duration::from_secs(60);

impl Journal {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { facts: Mutex::default(), clock }
    }

    /// The first promise that was broken.
    pub fn violation(&self) -> Option<Violation> {
        self.facts().violation.clone()
    }

    /// What happened so far, a line each.
    pub fn story(&self) -> Vec<String> {
        self.facts().story.clone()
    }

    pub fn tell(&self, line: String) {
        self.facts().story.push(line);
    }

    pub fn breaks(&self, promise: Promise, what: impl Into<String>) {
        self.facts().breaks(promise, what.into());
    }

    pub fn meets(&self, sight: Sight) {
        self.facts().met.insert(sight);
    }

    pub fn met(&self) -> HashSet<Sight> {
        self.facts().met.clone()
    }

    pub fn is_born(&self, life: Life) {
        let now = self.clock.now();
        self.facts().born.insert(life, now);
    }

    pub fn dies(&self, life: Life) {
        self.facts().dead.insert(life);
    }

    pub fn hears_end(&self, life: Life, key: &SessionKey) {
        self.facts().heard.insert((life, visitor_of(key)));
    }

    // Promise 1: leases, intents and redeems.

    /// `life` holds the lease of `half` for `hold` from now on.
    pub fn leads(&self, life: Life, half: Half, hold: Duration) {
        let held_until = self.clock.now().after(hold);
        self.facts().declared.insert((life, half), Declared { used: true, held_until });
    }

    /// `life` has written ahead that it is about to send `half`'s refresh token.
    pub fn declares(&self, life: Life, half: Half, hold: Duration) {
        let held_until = self.clock.now().after(hold);
        self.facts().declared.insert((life, half), Declared { used: false, held_until });
    }

    /// `life` has its lease on `half` for longer.
    pub fn extends(&self, life: Life, half: Half, hold: Duration) {
        let held_until = self.clock.now().after(hold);
        if let Some(declared) = self.facts().declared.get_mut(&(life, half)) {
            declared.held_until = held_until;
        }
    }

    /// The leader gives its lease up and knows not what became of the token.
    pub fn leaves_unsettled(&self, life: Life, half: Half) {
        for send in self.facts().sends.iter_mut().filter(|send| send.life == life && send.half == half) {
            send.unsettled = true;
        }
    }

    /// A lease was taken over together with the intent of a recovery: the next thing is an orderly end.
    pub fn finds_recovery_orphaned(&self, half: Half) {
        let mut facts = self.facts();
        facts.met.insert(Sight::OrphanedRecovery);
        facts.over.insert(half);
    }

    /// `life` sends `half`'s refresh token. Returns the send's number.
    pub fn sends(&self, life: Life, half: Half, refresh: &str) -> usize {
        let mut facts = self.facts();
        let written_ahead =
            facts.declared.get_mut(&(life, half)).is_some_and(|it| !std::mem::replace(&mut it.used, true));
        let anothers = facts
            .declared
            .iter()
            .any(|((other, declared), it)| *other == life && declared.1 == half.1 && declared.0 != half.0 && !it.used);
        if !written_ahead && anothers {
            facts.breaks(Promise::SessionsStayApart, format!("{} was sent in the place of another's", named(half)));
        } else if !written_ahead {
            facts.breaks(Promise::OneRedeem, format!("{} was sent without an intent of its own", named(half)));
        }
        facts.sends.push(Send { life, half, refresh: refresh.to_owned(), spent: false, unsettled: false });
        facts.sends.len() - 1
    }

    /// How many refresh tokens were sent so far.
    pub fn sent(&self) -> usize {
        self.facts().sends.len()
    }

    /// The sender was told that nothing is known of the send.
    pub fn lost_the_answer(&self, send: usize) {
        let mut facts = self.facts();
        facts.met.insert(Sight::AnswerOfARedeemLost);
        facts.sends[send].unsettled = true;
    }

    /// Emporix took the token of `send` for a redeem.
    pub fn redeems(&self, send: usize) {
        let now = self.clock.now();
        let mut facts = self.facts();
        let half = facts.sends[send].half;
        let earlier: Vec<usize> = (0..facts.sends.len())
            .filter(|other| facts.sends[*other].spent && facts.sends[*other].refresh == facts.sends[send].refresh)
            .collect();
        facts.sends[send].spent = true;
        match earlier[..] {
            [] => {}
            [first] if facts.is_orphaned(first, now) || facts.is_orphaned(send, now) => {
                facts.met.insert(Sight::Recovery);
            }
            [_] => {
                facts.breaks(Promise::OneRedeem, format!("{} was redeemed twice, while its leader lived", named(half)));
            }
            _ => facts.breaks(Promise::OneRedeem, format!("{} was redeemed a third time", named(half))),
        }
    }

    /// Emporix refused a refresh token.
    pub fn refuses(&self, half: Half) {
        self.facts().over.insert(half);
    }

    // Promises 2 to 4 and 6: records.

    /// A record as the model's beginning puts it there.
    pub fn begins_with(&self, session: &Session) {
        let mut facts = self.facts();
        for scope in [Scope::Anonymous, Scope::Customer] {
            facts.entered.extend(session.tokens(scope).map(|tokens| tokens.access.expose().to_owned()));
        }
    }

    /// `after` was stored where `before` was.
    pub fn saves(&self, before: Option<&Session>, after: &Session, emporix: &Emporix) {
        let mut facts = self.facts();
        if facts.removed.contains(&after.key) {
            let what = format!("{}'s session was stored after its end", VISITORS[visitor_of(&after.key)].0);
            return facts.breaks(Promise::LogoutAbsorbs, what);
        }
        let Some(before) = before else { return };
        for scope in [Scope::Anonymous, Scope::Customer] {
            facts.judge_save(before, after, scope, emporix);
        }
    }

    /// The record was removed.
    pub fn removes(&self, key: &SessionKey) {
        let mut facts = self.facts();
        let visitor = visitor_of(key);
        if !facts.logout_asked.contains(&visitor) {
            facts.breaks(
                Promise::FaultsEndNothing,
                format!("{}'s session was removed and nobody logged out", VISITORS[visitor].0),
            );
        }
        facts.removed.insert(*key);
    }

    // Promise 3: logouts.

    pub fn asks_login(&self, visitor: usize) {
        self.facts().login_asked.insert(visitor);
    }

    /// A logout begins, of one visitor or of all that are the same customer.
    pub fn asks_logout(&self, visitor: usize, all: bool) {
        let asked =
            (0..VISITORS.len()).filter(|other| *other == visitor || all && customer_of(*other) == customer_of(visitor));
        self.facts().logout_asked.extend(asked);
    }

    pub fn was_asked_to_log_out(&self, visitor: usize) -> bool {
        self.facts().logout_asked.contains(&visitor)
    }

    /// A logout was answered: confirmed, or with the word that the store could not be told yet.
    pub fn logs_out(&self, life: Life, visitor: usize, confirmed: bool) {
        let logged_out = LoggedOut { at: self.clock.now(), life, confirmed };
        let mut facts = self.facts();
        if confirmed && !facts.removed.contains(&super::visitors::key_of(visitor)) {
            let what = format!("{}'s logout was confirmed and its record stands", VISITORS[visitor].0);
            facts.breaks(Promise::LogoutAbsorbs, what);
        }
        if !confirmed {
            facts.met.insert(Sight::LogoutWithoutTheStore);
        }
        let known = facts.logged_out.get(&visitor).copied();
        if !known.is_some_and(|known| known.confirmed) {
            facts.logged_out.insert(visitor, logged_out);
        }
    }

    /// All sessions that `visitor`'s customer signed in up to `epoch` are over.
    pub fn logs_out_all(&self, life: Life, visitor: usize, epoch: Timestamp) {
        self.meets(Sight::LogoutEverywhere);
        let logged_out = LoggedOut { at: self.clock.now(), life, confirmed: true };
        for other in (0..VISITORS.len()).filter(|other| customer_of(*other) == customer_of(visitor)) {
            self.facts().all_logged_out.insert(other, (epoch, logged_out));
        }
    }

    /// Whether a request of `visitor` that begins now, on this replica, may not pass.
    pub fn must_refuse(&self, life: Life, visitor: usize) -> bool {
        let facts = self.facts();
        facts.logged_out.get(&visitor).is_some_and(|it| facts.binds(it, life, visitor, self.clock.now()))
    }

    /// Up to when a sign-in of `visitor` is over for a request that begins now, on this replica.
    pub fn must_refuse_sign_ins(&self, life: Life, visitor: usize) -> Option<Timestamp> {
        let facts = self.facts();
        let (epoch, logged_out) = facts.all_logged_out.get(&visitor)?;
        facts.binds(logged_out, life, visitor, self.clock.now()).then_some(*epoch)
    }

    /// The visitors whose logout is final: told as done, or told as waiting by a replica that still lives.
    pub fn finally_out(&self) -> Vec<usize> {
        let facts = self.facts();
        let is_final = |it: &LoggedOut| it.confirmed || !facts.dead.contains(&it.life);
        facts.logged_out.iter().filter(|(_, it)| is_final(it)).map(|(visitor, _)| *visitor).collect()
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap()
    }
}

impl Facts {
    /// Only the first counts: what follows may follow from it.
    fn breaks(&mut self, promise: Promise, what: String) {
        self.story.push(format!("!! {what}"));
        self.violation.get_or_insert(Violation { promise, what });
    }

    /// Whether the leader of `send` crashed, was suspended past its lease, or never learnt what came of it.
    fn is_orphaned(&self, send: usize, now: Timestamp) -> bool {
        let Send { life, half, unsettled, .. } = &self.sends[send];
        let held = self.declared.get(&(*life, *half)).is_some_and(|declared| now < declared.held_until);
        *unsettled || !held || self.dead.contains(life)
    }

    fn judge_save(&mut self, before: &Session, after: &Session, scope: Scope, emporix: &Emporix) {
        let half = (visitor_of(&after.key), scope);
        let text = |session: &Session| {
            session.tokens(scope).map(|tokens| {
                (tokens.access.expose().to_owned(), tokens.refresh.as_ref().map(|refresh| refresh.expose().to_owned()))
            })
        };
        let (was, is) = (text(before), text(after));
        let steps = after.generation(scope).checked_sub(before.generation(scope));
        if was == is {
            if steps != Some(0) {
                self.breaks(
                    Promise::SavesFollowGenerations,
                    format!("{}'s generation changed without its tokens", named(half)),
                );
            }
            return;
        }
        let Some((access, refresh)) = is else { return self.judge_end(half, steps) };
        if emporix.whose(&access) != Some(half) {
            return self.breaks(
                Promise::SessionsStayApart,
                format!("another session's tokens were stored as {}", named(half)),
            );
        }
        let replaced = was.as_ref();
        if replaced.is_some_and(|(known, _)| *known == access) {
            // The same set without its refresh token: the visitor's half ended.
            debug_assert!(refresh.is_none());
            return self.judge_end(half, steps);
        }
        let follows = match emporix.origin(&access) {
            Origin::Renewal(parent) => {
                steps == Some(1) && replaced.is_some_and(|(_, refresh)| refresh.as_ref() == Some(&parent))
            }
            // A sign-in ends the customer before, if there is one, and begins the next.
            Origin::Fresh if scope == Scope::Customer => steps == Some(1 + u64::from(was.is_some())),
            Origin::Fresh => steps == Some(1),
        };
        if !self.entered.insert(access) || !follows {
            self.breaks(
                Promise::SavesFollowGenerations,
                format!("{} was stored over what it did not come from", named(half)),
            );
        }
    }

    /// A half ends for a refusal, for a recovery that was orphaned as well, or with a sign-in that is taken back.
    fn judge_end(&mut self, half: Half, steps: Option<u64>) {
        if steps != Some(1) {
            return self
                .breaks(Promise::SavesFollowGenerations, format!("{} ended over what was not seen", named(half)));
        }
        let taken_back = half.1 == Scope::Customer && self.login_asked.contains(&half.0);
        if !self.over.contains(&half) && !taken_back {
            self.breaks(Promise::FaultsEndNothing, format!("{} ended and nobody said so", named(half)));
        }
    }

    /// Whether `life` has to know of a logout: it took it, heard of it, came later, or had the time to ask.
    fn binds(&self, logged_out: &LoggedOut, life: Life, visitor: usize, now: Timestamp) -> bool {
        if !logged_out.confirmed {
            return logged_out.life == life;
        }
        let came_later = self.born.get(&life).is_some_and(|born| *born > logged_out.at);
        let heard = self.heard.contains(&(life, visitor));
        logged_out.life.0 == life.0 || heard || came_later || now.since(logged_out.at) > HOT_GRACE
    }
}

fn named((visitor, scope): Half) -> String {
    format!("{}'s {scope:?} half", VISITORS[visitor].0)
}
