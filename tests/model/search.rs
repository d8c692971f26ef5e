//! Searching a model in full. Safety is stateright's breadth-first search,
//! which answers with a shortest way to each violation. That all comes to an
//! end is asked here, since stateright's `eventually` overlooks cycles: from
//! every state that can be reached, the end must be in reach by what the
//! protocol does itself, with no help from faults or from outside. In a finite
//! model that is the same as that it ends if no step is put off for ever.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::{BuildHasher as _, Hash, RandomState};

use stateright::{Checker as _, HasDiscoveries, Model};

/// A model that comes to an end.
pub(crate) trait Protocol: Model {
    /// Whether nothing is left to be done.
    fn is_over(&self, state: &Self::State) -> bool;
    /// Whether the protocol takes that step by itself, sooner or later.
    fn is_sure(&self, action: &Self::Action) -> bool;
}

/// The name of what is broken if the end is out of reach.
pub(crate) const ENDS: &str = "ends";

/// What the search finds broken: names of properties, and [`ENDS`]. The ways
/// there are printed, for who runs the test with `--nocapture`.
pub(crate) fn broken<M>(model: M) -> BTreeSet<&'static str>
where
    M: Protocol + Clone + Debug + Send + Sync + 'static,
    M::State: Clone + Debug + Eq + Hash + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let checker =
        model.clone().checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{model:?}: {} states", checker.unique_state_count());
    let mut names = BTreeSet::new();
    for (name, path) in checker.discoveries() {
        println!("not true: {name}");
        let path = path.into_vec();
        for (_, action) in &path {
            println!("  {}", action.as_ref().map_or_else(|| "=>".to_owned(), |it| format!("{it:?}")));
        }
        println!("  {:?}", path.last().map(|it| &it.0));
        names.insert(name);
    }
    if names.is_empty() && out_of_reach(&model) {
        names.insert(ENDS);
    }
    names
}

/// Whether there is a state that the end cannot be reached from. Like
/// stateright's search, it knows a state again by its hash.
fn out_of_reach<M>(model: &M) -> bool
where
    M: Protocol,
    M::State: Debug + Hash,
    M::Action: Clone + Debug,
{
    let hasher = RandomState::new();
    let mut places: HashMap<u64, usize> = HashMap::new();
    let mut found: Vec<Found<M::Action>> = Vec::new();
    let mut new = VecDeque::new();
    let mut place = |found: &mut Vec<Found<M::Action>>, new: &mut VecDeque<_>, state: M::State, first| {
        *places.entry(hasher.hash_one(&state)).or_insert_with(|| {
            found.push(Found { first, before: Vec::new(), good: model.is_over(&state) });
            new.push_back((found.len() - 1, state));
            found.len() - 1
        })
    };
    for state in model.init_states() {
        place(&mut found, &mut new, state, None);
    }
    while let Some((at, state)) = new.pop_front() {
        for (action, next) in model.next_steps(&state) {
            let sure = model.is_sure(&action);
            let to = place(&mut found, &mut new, next, Some((at, action)));
            if sure {
                found[to].before.push(at);
            }
        }
    }
    let mut queue: VecDeque<usize> = (0..found.len()).filter(|i| found[*i].good).collect();
    assert!(!queue.is_empty(), "nothing ever ends");
    while let Some(place) = queue.pop_front() {
        for from in std::mem::take(&mut found[place].before) {
            if !std::mem::replace(&mut found[from].good, true) {
                queue.push_back(from);
            }
        }
    }
    let Some(mut place) = found.iter().position(|it| !it.good) else { return false };
    let mut way = Vec::new();
    while let Some((from, action)) = &found[place].first {
        way.push(action.clone());
        place = *from;
    }
    println!("stuck:");
    let mut state = model.init_states().swap_remove(place);
    for action in way.into_iter().rev() {
        println!("  {action:?}");
        state = model.next_state(&state, action).unwrap_or(state);
    }
    println!("  {state:?}");
    true
}

/// What is kept of a state.
struct Found<A> {
    /// From where it was reached first, and how.
    first: Option<(usize, A)>,
    /// The states that surely lead to it.
    before: Vec<usize>,
    /// Whether the end is in reach.
    good: bool,
}
