// Where the maps of a network lie in one piece of memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace pyunetsep {

// A map lives from the step that writes it to the last that reads it, and maps that are never alive together may share
// memory. Sizes and places are in any unit.
class Layout {
 public:
  // Returns the map's number.
  size_t add(int64_t size, int first_step, int last_step) {
    maps_.push_back({.size = size, .first = first_step, .last = last_step, .at = 0});
    return maps_.size() - 1;
  }

  // Gives every map its place, the first that fits in the order in which they were added; returns the size in all.
  int64_t place() {
    int64_t size = 0;
    for (size_t i = 0; i < maps_.size(); ++i) {
      Map& map = maps_[i];
      map.at = 0;
      std::vector<const Map*> alive;
      for (size_t j = 0; j < i; ++j) {
        if (maps_[j].first <= map.last && map.first <= maps_[j].last) alive.push_back(&maps_[j]);
      }
      std::sort(alive.begin(), alive.end(), [](const Map* a, const Map* b) { return a->at < b->at; });
      for (const Map* other : alive) {
        if (map.at + map.size <= other->at) break;
        map.at = std::max(map.at, other->at + other->size);
      }
      size = std::max(size, map.at + map.size);
    }
    return size;
  }

  size_t maps() const { return maps_.size(); }
  int64_t size(size_t map) const { return maps_[map].size; }
  int64_t operator[](size_t map) const { return maps_[map].at; }

 private:
  struct Map {
    int64_t size;
    int first, last;  // step
    int64_t at;
  };
  std::vector<Map> maps_;
};

}  // namespace pyunetsep
