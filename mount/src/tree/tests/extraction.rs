//! Random layers, merged and extracted.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::model::{Model, Real, joined};
use super::*;

/// Everything that a tree tells about one name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    kind: Kind,
    attributes: (u16, u32, u32, Timestamp, usize),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    all_names: BTreeSet<String>,
}

fn told_by_tree(tree: &Tree) -> BTreeMap<String, Told> {
    let names: Vec<_> = tree
        .walk()
        .map(|step| step.map(|(path, id)| (text(&path), id)).unwrap())
        .collect();
    let tell = |path: &String, id: NodeId| {
        let node = tree.node(id).unwrap();
        let same = names.iter().filter(|(_, other)| *other == id);
        let xattrs = tree.xattrs(id).unwrap().into_iter();
        Told {
            kind: match node.kind {
                NodeKind::Directory => Kind::Directory,
                NodeKind::Regular { .. } => Kind::Regular { size: node.size },
                NodeKind::Symlink => symlink("", &text(tree.link_target(id).unwrap())).kind,
                NodeKind::Fifo => Kind::Fifo,
                other => panic!("{path}: {other:?}"),
            },
            attributes: (
                node.mode,
                node.uid,
                node.gid,
                node.mtime,
                node.nlink as usize,
            ),
            xattrs: xattrs
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            all_names: same.map(|(path, _)| path.clone()).collect(),
        }
    };
    names
        .iter()
        .map(|(path, id)| (path.clone(), tell(path, *id)))
        .collect()
}

fn told_by_model(model: &Model) -> BTreeMap<String, Told> {
    let tell = |(path, file): (&String, &std::rc::Rc<Entry>)| {
        let told = Told {
            kind: file.kind.clone(),
            attributes: (file.mode, file.uid, file.gid, file.mtime, model.nlink(path)),
            xattrs: file.xattrs.clone(),
            all_names: model.same_file(file),
        };
        (path.clone(), told)
    };
    model.files.iter().map(tell).collect()
}

fn any_path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("a.b")];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn any_target() -> impl Strategy<Value = String> {
    let step = prop_oneof![4 => Just("a"), 4 => Just("b"), 2 => Just("c"), 2 => Just(".."), 1 => Just("."), 1 => Just("")];
    let steps = prop::collection::vec(step, 1..4).prop_map(|steps| steps.join("/"));
    (any::<bool>(), steps).prop_map(|(is_absolute, steps)| match is_absolute {
        true => format!("/{steps}"),
        false => steps,
    })
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let named = prop_oneof![
        4 => any_path().prop_map(|path| dir(&path)),
        4 => (any_path(), 0..1000u64).prop_map(|(path, size)| entry(&path, Kind::Regular { size })),
        3 => (any_path(), any_target()).prop_map(|(path, target)| symlink(&path, &target)),
        3 => (any_path(), any_path()).prop_map(|(path, target)| hard_link(&path, &target)),
        1 => any_path().prop_map(|path| entry(&path, Kind::Fifo)),
        2 => any_path().prop_map(|path| whiteout(&path)),
        1 => any_path().prop_map(|path| opaque(&path)),
        1 => prop_oneof![Just(dir("")), Just(opaque("")), Just(file(""))],
    ];
    (named, 0..0o10000u16, any::<u32>(), any::<bool>()).prop_map(|(entry, mode, uid, has_xattr)| {
        let xattr = (b"user.n".to_vec(), uid.to_be_bytes().to_vec());
        Entry {
            mode,
            uid,
            xattrs: has_xattr.then_some(xattr).into_iter().collect(),
            ..entry
        }
    })
}

fn any_layers() -> impl Strategy<Value = Vec<Vec<Entry>>> {
    prop::collection::vec(prop::collection::vec(any_entry(), 0..16), 1..4)
}

/// `layers` extracted, and those of their entries that can be.
fn extracted(layers: &[Vec<Entry>]) -> (Model, Vec<Vec<Entry>>) {
    let mut model = Model::new();
    let accepted = layers.iter().map(|layer| model.extract(layer)).collect();
    (model, accepted)
}

/// As [`extracted`], with layers that can be extracted whole.
fn extractable(mut layers: Vec<Vec<Entry>>) -> (Model, Vec<Vec<Entry>>) {
    loop {
        let (model, accepted) = extracted(&layers);
        if accepted == layers {
            return (model, layers);
        }
        layers = accepted;
    }
}

proptest! {
    /// What we show is what unpacking the layers in order, whiteouts included, leaves on disk.
    #[test]
    fn a_merged_tree_equals_extraction(layers in any_layers()) {
        let (model, layers) = extractable(layers);
        let tree = tree(&layers);
        prop_assert_eq!(told_by_tree(&tree), told_by_model(&model));
    }

    /// Layers are refused if, and only if, one of their entries cannot be extracted.
    #[test]
    fn layers_that_cannot_be_extracted_are_refused(layers in any_layers()) {
        let (_, accepted) = extracted(&layers);
        prop_assert_eq!(merged(&layers).is_ok(), accepted == layers);
    }

    /// A path leads where following it by text does; names are found one by one as the walk shows them.
    #[test]
    fn paths_lead_where_the_model_says(layers in any_layers(), path in any_target()) {
        let (model, layers) = extractable(layers);
        let tree = tree(&layers);
        let paths: BTreeMap<_, _> = tree.walk().map(|step| step.unwrap()).map(|(path, id)| (id, text(&path))).collect();
        let found = match tree.resolve(path.as_bytes()).unwrap() {
            Resolved::Found(id) => {
                let Real::Path(real) = model.real(&path) else { panic!("the model finds nothing") };
                prop_assert_eq!(at(&tree, &real), id);
                Real::Path(real)
            }
            Resolved::Missing { at, rest } => {
                let path = joined(&paths[&at], &text(&rest));
                prop_assert!(!model.files.contains_key(&path));
                Real::Path(path)
            }
            Resolved::Blocked(Blocked::Loop) => Real::Loop,
            Resolved::Blocked(Blocked::NotADirectory) => Real::NotADirectory,
        };
        prop_assert_eq!(found, model.real(&path));

        for step in tree.walk().skip(1) {
            let (path, id) = step.unwrap();
            let (above, name) = match path.iter().rposition(|&byte| byte == b'/') {
                Some(slash) => (&path[..slash], &path[slash + 1..]),
                None => (&b""[..], &path[..]),
            };
            let directory = at(&tree, &text(above));
            prop_assert_eq!(tree.lookup(directory, name).unwrap(), Some(id));
            if tree.node(id).unwrap().kind == NodeKind::Directory {
                prop_assert_eq!(tree.parent(id).unwrap(), directory);
            }
        }
    }

    /// The same layers make the same bytes.
    #[test]
    fn merging_is_reproducible(layers in any_layers()) {
        let (_, layers) = extractable(layers);
        prop_assert_eq!(merged(&layers).unwrap(), merged(&layers).unwrap());
    }
}
