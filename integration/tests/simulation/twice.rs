//! Events that their source tells apart (rule T12): they come by push and in history, in any order, and again by push from
//! other producers. Each counts once.

use springhouse_featurestore::push::{EventSink, PushHeader};

use super::oracle::{Seen, seen_batch, write_seen};
use super::world::{Pushed, World};
use crate::windows::number;

/// Those who push bills, and number no batches: another one's bill is told by the bill alone.
const CLERKS: [&str; 3] = ["day shift", "night shift", "head office"];

impl World {
    /// The first file of their history.
    pub fn first_bills(&mut self, until: i64) {
        let mut bills = self.some_bills(8, until);
        while bills.is_empty() {
            bills = self.some_bills(8, until);
        }
        self.bills_in_history(&bills, false);
    }

    /// All bills that have come, each once.
    pub fn known_bills(&self) -> Vec<Seen> {
        let mut known = Pushed { bills: self.bills_before.clone(), ..Pushed::default() };
        known.extend(Pushed { bills: self.pushed.bills.clone(), ..Pushed::default() });
        known.bills
    }

    /// A few bills of up to a second: some that nobody has sent yet, and some that may have come already, whichever way.
    pub fn some_bills(&mut self, most: u64, until: i64) -> Vec<Seen> {
        let mut bills = Vec::new();
        for _ in 0..=self.random.below(most) {
            let known: Vec<Seen> = self.bills.iter().filter(|bill| bill.at <= until).copied().collect();
            if known.is_empty() || self.chance(2) {
                bills.extend(self.new_bill(until));
            } else {
                bills.push(self.random.pick(&known));
            }
        }
        bills
    }

    /// A bill of which no other has the user and the second.
    fn new_bill(&mut self, until: i64) -> Option<Seen> {
        let back = self.random.pick(&[30_u64, 4_000, 100_000]);
        let second = until - number(self.random.below(back));
        let mut bill = self.seen_at(second);
        bill.mark = number(self.bills.len() as u64 + 1);
        let is_free = !self.bills.iter().any(|other| (other.user, other.at) == (bill.user, bill.at));
        (is_free && bill.at > 0).then(|| {
            self.bills.push(bill);
            bill
        })
    }

    /// Some bills are pushed by one of those who number no batches; those that were pushed before are told.
    async fn push_bills(&mut self, bills: &[Seen]) {
        if bills.is_empty() {
            return;
        }
        let clerk = self.random.pick(&CLERKS);
        self.say(format!("{clerk} pushes the bills {bills:?}"));
        let before = self.pushed.bills.len();
        self.pushed.extend(Pushed { bills: bills.to_vec(), ..Pushed::default() });
        let (new, all) = ((self.pushed.bills.len() - before) as u64, bills.len() as u64);
        let header = PushHeader { producer: Some(clerk.to_owned()), sequence: None, watermark: None };
        let ack = self.server().pushes.push("bills", seen_batch(bills), header).await.expect("taken");
        assert_eq!((ack.rows, ack.repeated, ack.duplicate), (new, all - new, false), "{bills:?}");
        self.last = None;
    }

    /// A new file of history has these, or one that there was is written anew with them too.
    fn bills_in_history(&mut self, bills: &[Seen], grows: bool) {
        if bills.is_empty() {
            return;
        }
        self.say(format!("history has the bills {bills:?}, in a file that grows: {grows}"));
        if !grows {
            self.bill_files.push(Vec::new());
        }
        let index = usize::try_from(self.random.below(self.bill_files.len() as u64)).expect("few");
        let index = if grows { index } else { self.bill_files.len() - 1 };
        self.bill_files[index].extend(bills);
        write_seen(self.project.folder.path(), "bills", &format!("{index}.parquet"), &self.bill_files[index]);
        for bill in bills {
            if !self.bills_before.contains(bill) {
                self.bills_before.push(*bill);
            }
        }
    }

    /// Bills come by push and in history: in either order, before the history is read or after, and maybe flushed between.
    pub async fn twice(&mut self) {
        let until = self.readable_until().min(self.at());
        let (of_file, others) = (self.some_bills(4, until), self.some_bills(3, until));
        let (before, grows) = (self.chance(2), self.chance(3));
        if before {
            self.push_bills(&[of_file.as_slice(), &others].concat()).await;
            if self.chance(2) {
                self.flush().await;
            }
            self.check();
        }
        self.bills_in_history(&of_file, grows);
        if self.chance(3) {
            self.push_bills(&of_file).await;
            if self.chance(2) {
                self.flush().await;
            }
        }
        self.say("refreshes");
        self.refresh_all().await;
        self.follow().await;
        self.check();
        self.push_bills(&of_file).await;
        self.check();
        if self.chance(2) {
            self.push_bills(&[others.as_slice(), &of_file].concat()).await;
            self.flush().await;
        }
    }
}
