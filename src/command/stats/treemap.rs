//! Rectangles whose areas are to each other as numbers are, as near to squares as possible (Bruls, Huizing, van Wijk: Squarified
//! Treemaps, 2000).

/// Where something is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Area {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

/// One area for each of `sizes`, which are sorted, the largest first, and more than 0. Together they fill `area`.
pub(super) fn areas(sizes: &[f64], area: Area) -> Vec<Area> {
    let total: f64 = sizes.iter().sum();
    let scale = area.width * area.height / total;
    let sizes: Vec<f64> = sizes.iter().map(|size| size * scale).collect();
    let (mut placed, mut left, mut rest) = (Vec::with_capacity(sizes.len()), area, &sizes[..]);
    while !rest.is_empty() {
        let side = left.width.min(left.height);
        let mut count = 1;
        while count < rest.len() && worst(&rest[..=count], side) <= worst(&rest[..count], side) {
            count += 1;
        }
        let row = &rest[..count];
        left = lay(row, left, &mut placed);
        rest = &rest[count..];
    }
    placed
}

/// How far the worst of a row along `side` is from a square.
fn worst(row: &[f64], side: f64) -> f64 {
    let sum: f64 = row.iter().sum();
    let (largest, smallest) = (row[0], row[row.len() - 1]);
    let square =
        |size: f64| (side * side * size / (sum * sum)).max(sum * sum / (side * side * size));
    square(largest).max(square(smallest))
}

/// Puts a row along the shorter side; gives what is left.
fn lay(row: &[f64], area: Area, placed: &mut Vec<Area>) -> Area {
    let sum: f64 = row.iter().sum();
    let is_wide = area.width >= area.height;
    let thick = sum / if is_wide { area.height } else { area.width };
    let mut at = 0.0;
    for size in row {
        let long = size / thick;
        placed.push(match is_wide {
            true => Area {
                x: area.x,
                y: area.y + at,
                width: thick,
                height: long,
            },
            false => Area {
                x: area.x + at,
                y: area.y,
                width: long,
                height: thick,
            },
        });
        at += long;
    }
    match is_wide {
        true => Area {
            x: area.x + thick,
            width: (area.width - thick).max(0.0),
            ..area
        },
        false => Area {
            y: area.y + thick,
            height: (area.height - thick).max(0.0),
            ..area
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_fill_their_place_in_proportion_and_do_not_overlap() {
        let whole = Area {
            x: 10.0,
            y: 20.0,
            width: 600.0,
            height: 400.0,
        };
        let sizes: Vec<f64> = (1..200).rev().map(|size| f64::from(size * size)).collect();
        let total: f64 = sizes.iter().sum();
        let areas = areas(&sizes, whole);
        assert_eq!(areas.len(), sizes.len());
        for (area, size) in areas.iter().zip(&sizes) {
            let expected = size / total * 240_000.0;
            assert!((area.width * area.height - expected).abs() < 1e-6);
            assert!(area.x >= 10.0 && area.x + area.width <= 610.0 + 1e-6);
            assert!(area.y >= 20.0 && area.y + area.height <= 420.0 + 1e-6);
        }
        for (place, one) in areas.iter().enumerate() {
            for other in &areas[..place] {
                let wide = (one.x + one.width).min(other.x + other.width) - one.x.max(other.x);
                let high = (one.y + one.height).min(other.y + other.height) - one.y.max(other.y);
                assert!(wide < 1e-6 || high < 1e-6, "{one:?} {other:?}");
            }
        }
    }
}
