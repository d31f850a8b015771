//! Faults planted on purpose, each in what stands behind a seam: whoever passes with one of them proves nothing.
//! The honest system has none.

/// What is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    /// Every lease is granted to whoever asks.
    EveryLeaseGranted,
    /// The identity client repeats a call whose answer was lost.
    RepeatedCall,
    /// A save looks at no revision.
    BlindSave,
    /// A removal leaves no tombstone, and a save creates what is missing.
    NoTombstone,
    /// A load that failed says that there is nothing.
    FaultIsAbsence,
    /// The store logs what it is given.
    Talkative,
    /// A load answers with the halves of another session's record.
    MixedUp,
}
