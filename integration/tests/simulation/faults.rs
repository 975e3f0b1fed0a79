//! The faults of a simulation. Each can be on by itself, so that one can see which fault finds what.

use std::collections::BTreeSet;

/// What may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Object storage acts, and then answers an error.
    Ambiguous,
    /// Views are backfilled, also while there are pushes and flushes.
    Backfill,
    /// Clocks stand still, jump, differ between takers, and producers' are ahead.
    Clock,
    /// A push log is copied: an older one is restored, or both run by turns.
    CopiedLog,
    /// Clocks jump ahead, and are set back by hours, also while views are loaded.
    ClockBack,
    /// Files of views and of pushed events are merged, and garbage goes, also while others commit, or object storage dies.
    Compact,
    /// The process is killed, and sometimes loses its disk tier.
    Crash,
    /// A process ends between the events of a flush and the commits of its views, and these are refreshed before it is back.
    CutOff,
    /// Object storage dies in the middle of a flush or of a refresh.
    Dying,
    /// Views are defined after events were pushed, and refreshed first while there are pushes and flushes.
    FirstRefresh,
    /// There is a view that groups by hour: a row holds from the end of its hour on.
    Hours,
    /// History has new files with old events.
    LateFile,
    /// A file of history is on its way while others read past the times of its events.
    LateHistory,
    /// Object storage answers an error, and acts later.
    LatePut,
    /// Two follow the store at once while there is something to load.
    Loads,
    /// Nobody hears an acknowledgement: the batch is sent again, after a restart or to the other taker.
    LostAck,
    /// The disk tier is deleted at some instant of a load or of a flush.
    LostDisk,
    /// Events on which a view's query fails, and which are refused.
    Poison,
    /// The power is cut: what was not synced is gone. It needs a process that was started on such a disk.
    PowerCut,
    /// Producers are retired, or set back, and then the takers change.
    Producers,
    /// The clock of who refreshes is ahead of the takers', or behind, by seconds or by hours.
    RefreshClock,
    /// Events on which queries fail that are not tried before a push is taken: of a view that looks back, of one that groups by
    /// hour, and of one that is defined later. Those do without them, and nobody else.
    SetAside,
    /// Another process takes pushes for the same store, and the first one comes back.
    Takers,
    /// Events with equal times, of which the later write counts, in windows too; and views whose rows are made of several
    /// events.
    Ties,
    /// A source tells its events apart; they come by push and in history, in any order, and twice.
    Twice,
    /// Producers say that they have sent everything up to a time that lies far ahead.
    Watermark,
    /// Batches that are not of their source's types, zones or times.
    Wrong,
}

const NAMES: [(&str, Fault); 27] = [
    ("ambiguous", Fault::Ambiguous),
    ("backfill", Fault::Backfill),
    ("clock", Fault::Clock),
    ("clock_back", Fault::ClockBack),
    ("compact", Fault::Compact),
    ("copied_log", Fault::CopiedLog),
    ("crash", Fault::Crash),
    ("cut_off", Fault::CutOff),
    ("dying", Fault::Dying),
    ("first_refresh", Fault::FirstRefresh),
    ("hours", Fault::Hours),
    ("late_file", Fault::LateFile),
    ("late_history", Fault::LateHistory),
    ("late_put", Fault::LatePut),
    ("loads", Fault::Loads),
    ("lost_ack", Fault::LostAck),
    ("lost_disk", Fault::LostDisk),
    ("poison", Fault::Poison),
    ("power_cut", Fault::PowerCut),
    ("producers", Fault::Producers),
    ("refresh_clock", Fault::RefreshClock),
    ("set_aside", Fault::SetAside),
    ("takers", Fault::Takers),
    ("ties", Fault::Ties),
    ("twice", Fault::Twice),
    ("watermark", Fault::Watermark),
    ("wrong", Fault::Wrong),
];

/// A step of a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Push,
    Flush,
    Refresh,
    Restart,
    SentAgain,
    Fault(Fault),
}

/// Those that are on.
#[derive(Debug, Clone)]
pub struct Faults(BTreeSet<Fault>);

impl Faults {
    /// Those that `SIMULATION_FAULTS` names; `none` for none of them. All, where it is not set, but power cuts, which need a
    /// disk of their own.
    pub fn wanted() -> Self {
        let all = || NAMES.iter().map(|(_, fault)| *fault).filter(|fault| *fault != Fault::PowerCut);
        let Ok(wanted) = std::env::var("SIMULATION_FAULTS") else { return Self(all().collect()) };
        let named = wanted.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "none");
        let fault = |name: &str| {
            let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, fault)| *fault);
            found.unwrap_or_else(|| {
                panic!("no such fault: {name}; there are {}", NAMES.map(|(name, _)| name).join(", "))
            })
        };
        Self(named.map(fault).collect())
    }

    pub fn has(&self, fault: Fault) -> bool {
        self.0.contains(&fault)
    }

    /// The names of those that are on.
    pub fn names(&self) -> String {
        let on = NAMES.iter().filter(|(_, fault)| self.has(*fault)).map(|(name, _)| *name);
        on.collect::<Vec<_>>().join(",")
    }

    /// The steps that there are, each as often as it is to come up.
    pub fn steps(&self) -> Vec<Step> {
        let usual = [(Step::Push, 10), (Step::Flush, 2), (Step::Refresh, 1), (Step::Restart, 1), (Step::SentAgain, 1)];
        let mut steps: Vec<Step> = usual.iter().flat_map(|(step, times)| vec![*step; *times]).collect();
        // Those that are there all the time have no step of their own.
        let always = [Fault::Clock, Fault::Hours, Fault::Ties];
        let own = self.0.iter().filter(|fault| !always.contains(fault));
        steps.extend(own.flat_map(|fault| [Step::Fault(*fault); 2]));
        steps
    }
}
