//! Whatever a tree file says, every question is answered, by an error at worst, and in bounded time.

use sifon_mount::sys::Sealed;
use sifon_mount::tree::{NodeId, NodeKind, Tree};

/// Nodes to ask for at most: a header may promise millions.
const NODES_LIMIT: u64 = 1000;

pub fn run(bytes: &[u8]) {
    let Ok(tree) = Tree::open(Sealed::in_memory(bytes.to_vec())) else {
        return;
    };
    let _ = (tree.layers(), tree.file_bytes(), tree.has_xattrs());
    for id in (0..=tree.node_count().min(NODES_LIMIT) + 1).map(NodeId) {
        ask_for(&tree, id);
    }
    // Each name takes 16 bytes of the file and is shown once; then there are the root and one error.
    let shown = tree.walk().inspect(|step| {
        if let Ok((path, _)) = step {
            let _ = tree.resolve(path);
        }
    });
    assert!(shown.take(bytes.len()).count() <= bytes.len() / 16 + 2);
    for path in ["l", "d/up/d/up/h", "d/e/../../../l/x", "h/..", "none/../d"] {
        let _ = tree.resolve(path.as_bytes());
    }
}

fn ask_for(tree: &Tree, id: NodeId) {
    let _ = (tree.parent(id), tree.link_target(id), tree.xattrs(id));
    let is_directory = tree
        .node(id)
        .is_ok_and(|node| node.kind == NodeKind::Directory);
    let Ok(children) = tree.children(id, 0) else {
        return;
    };
    assert!(is_directory, "only directories have children");
    for (name, child) in children.flatten().take(100) {
        assert!(!name.is_empty() && !name.contains(&b'/'));
        assert!((1..=tree.node_count()).contains(&child.0));
        let _ = tree.lookup(id, name);
    }
}
