// Reads a leaf and a slice of it through a mount: read FOLDER KEY SLICE, both float32 .npy files. Prints the leaf's sum and the
// slice's elements. Standard library only.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log"
	"math"
	"os"
	"strings"
)

// load returns the elements of a float32 .npy file.
func load(path string) []float32 {
	data, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	if len(data) < 10 || !bytes.HasPrefix(data, []byte("\x93NUMPY\x01\x00")) {
		log.Fatal(path, ": not a .npy file")
	}
	start := 10 + int(binary.LittleEndian.Uint16(data[8:]))
	if header := string(data[10:start]); !strings.Contains(header, "'<f4'") {
		log.Fatal(path, ": not float32: ", header)
	}
	elements := make([]float32, (len(data)-start)/4)
	for i := range elements {
		elements[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[start+4*i:]))
	}
	return elements
}

func main() {
	if len(os.Args) != 4 {
		os.Exit(2)
	}
	base := os.Args[1] + "/" + os.Args[2]
	leaf, sum := load(base+".npy"), 0.0
	for _, v := range leaf {
		sum += float64(v)
	}
	fmt.Printf("%d %.9g\n", len(leaf), sum)
	var texts []string
	for _, v := range load(base + "@" + os.Args[3] + ".npy") {
		texts = append(texts, fmt.Sprintf("%.9g", v))
	}
	fmt.Println(strings.Join(texts, " "))
}
