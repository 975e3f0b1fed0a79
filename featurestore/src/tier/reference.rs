//! The plainest tier there is: the oracle of the conformance suite, and a store for tests that need no disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;

use super::{Generation, HeldAddition, KeyedRow, Mark, OnlineTier, ViewRead, merge_rows};
use crate::Result;
use crate::definition::Pinned;

#[derive(Debug, Default, Clone)]
struct View {
    rows: BTreeMap<Bytes, Bytes>,
    mark: Mark,
}

/// Rows in ordered maps behind one lock.
#[derive(Debug, Default)]
pub struct ReferenceTier {
    views: RwLock<HashMap<Pinned, View>>,
}

impl View {
    fn add(&mut self, rows: Vec<KeyedRow>) -> Result<()> {
        merge_rows(&mut self.rows, rows)
    }
}

impl OnlineTier for ReferenceTier {
    fn read(&self, view: &Pinned, keys: &[&[u8]]) -> Result<ViewRead> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        let Some(view) = views.get(view) else {
            return Ok(ViewRead { rows: vec![None; keys.len()], mark: Mark::default() });
        };
        Ok(ViewRead { rows: keys.iter().map(|key| view.rows.get(*key).cloned()).collect(), mark: view.mark })
    }

    fn mark(&self, view: &Pinned) -> Result<Mark> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        Ok(views.get(view).map(|view| view.mark).unwrap_or_default())
    }

    fn apply(&self, view: &Pinned, rows: Vec<KeyedRow>, mark: Mark) -> Result<()> {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        let view = views.entry(view.clone()).or_default();
        view.add(rows)?;
        view.mark = mark;
        Ok(())
    }

    fn begin_generation(&self, view: &Pinned) -> Result<Box<dyn Generation + '_>> {
        Ok(Box::new(ReferenceGeneration { tier: self, name: view.clone(), view: View::default() }))
    }

    fn begin_addition(&self, view: &Pinned) -> Result<Box<dyn Generation + '_>> {
        Ok(Box::new(HeldAddition::new(self, view)))
    }

    fn views(&self) -> Vec<Pinned> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn forget(&self, view: &Pinned) -> Result<()> {
        self.views.write().unwrap_or_else(PoisonError::into_inner).remove(view);
        Ok(())
    }
}

struct ReferenceGeneration<'a> {
    tier: &'a ReferenceTier,
    name: Pinned,
    view: View,
}

impl Generation for ReferenceGeneration<'_> {
    fn add(&mut self, rows: Vec<KeyedRow>) -> Result<()> {
        self.view.add(rows)
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(mut self: Box<Self>, mark: Mark) -> Result<()> {
        self.view.mark = mark;
        self.tier.views.write().unwrap_or_else(PoisonError::into_inner).insert(self.name, self.view);
        Ok(())
    }
}
