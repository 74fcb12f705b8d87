package seal

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"testing"

	"orlop/id"
)

// The values below pin the formats: if a change makes one differ, repositories
// that exist can no longer be read. The map and the key's text were computed by
// another implementation (Python's hmac and hashlib, with the ciphers and
// Argon2 of pyca/cryptography). The session at the end was sealed here, and
// opened by HPKE written in Python with OpenSSL's ML-KEM and X25519.
//
// root = 00..1f, seed = 20..3f, HPKE export = 40..5f, salt of a sealed thing =
// 60..6f, salt of a slot = 80..9f, repository = 01 02 03 00.., sid = 04 05 06
// 00.., writers 0 and 7; every plaintext is "golden", every ad "associated".

func fromHex(t *testing.T, name string) []byte {
	t.Helper()
	p, err := hex.DecodeString(golden[name])
	if err != nil || len(p) == 0 {
		t.Fatalf("golden %q: %v", name, err)
	}
	return p
}

func TestGoldenKeys(t *testing.T) {
	check := func(name string, got [32]byte) {
		t.Helper()
		if want := [32]byte(fromHex(t, name)); got != want {
			t.Errorf("%s = %x, want %x", name, got, want)
		}
	}
	for w, k := range map[string]Sealer{" 0": testKey, " 7": testKey.PutOnly(7)} {
		var own *writer
		switch k := k.(type) {
		case *Key:
			own = &k.writer
		case *PutKey:
			own = &k.writer
		}
		check("writer"+w, own.rootW)
		check("name"+w, k.NameKey())
		check("chunker"+w, k.ChunkSecret())
		check("session material"+w, own.material)
		check("index"+w, must(k.IndexKey(testRepo, k.Writer())).secret)
		h := Header{Suite: AES256GCM, Writer: k.Writer(), SID: testSID}
		export := sequence(64)
		check("session"+w, newSecret(export[:], own.material, testRepo, h).key)
		if k.Boundary().Sum("x") != id.NewKeyed([32]byte(fromHex(t, "boundary"+w))).Sum("x") {
			t.Errorf("boundary%s differs", w)
		}
	}
	check("config", derive(testKey.root[:], nil, labelConfig))
	if got := testKey.Text(); got != goldenText {
		t.Errorf("Text = %s, want %s", got, goldenText)
	}
	if got := hex.EncodeToString(sum(testKey.public.Bytes())); got != goldenPublic {
		t.Errorf("SHA-256 of the public key = %s, want %s", got, goldenPublic)
	}
}

func sum(p []byte) []byte {
	s := sha256.Sum256(p)
	return s[:]
}

func TestGoldenObjectsOpen(t *testing.T) {
	check := func(name string, got []byte, err error) {
		t.Helper()
		if err != nil || string(got) != "golden" {
			t.Errorf("%s = %q, %v", name, got, err)
		}
	}
	ad := []byte("associated")
	for s, n := range map[Suite]string{AES256GCM: " 1", ChaCha20Poly1305: " 2"} {
		material, export := [32]byte(fromHex(t, "session material 7")), sequence(64)
		r := &Reader{newSecret(export[:], material, testRepo, Header{Suite: s, Writer: 7, SID: testSID})}
		got, err := r.OpenBox(nil, fromHex(t, "box"+n), 1, 77)
		check("box"+n, got, err)
		got, err = r.OpenSnapshot(nil, fromHex(t, "snapshot"+n))
		check("snapshot"+n, got, err)
		index := must(testKey.IndexKey(testRepo, 7))
		got, err = index.Open(nil, Directory, fromHex(t, "directory"+n), ad)
		check("directory"+n, got, err)
		got, err = index.Open(nil, Segment, fromHex(t, "segment"+n), ad)
		check("segment"+n, got, err)
		got, err = testKey.OpenConfig(ad, fromHex(t, "config"+n))
		check("config"+n, got, err)
	}
	for name, s := range map[string]Secret{
		"slot password": Password([]byte("correct horse")),
		"slot text":     must(Text(goldenText)),
	} {
		k, config, err := OpenSlot(fromHex(t, name), s)
		check(name, config, err)
		if err == nil && !sameKey(k, testKey) {
			t.Errorf("%s holds %v", name, k)
		}
	}
}

func TestAGoldenSessionOpens(t *testing.T) {
	h, err := ParseHeader(must(base64.StdEncoding.DecodeString(goldenHeader)))
	if err != nil || h.Suite != AES256GCM || h.Writer != 7 || h.SID != testSID {
		t.Fatalf("ParseHeader = %v, %v", h, err)
	}
	r := must(testKey.OpenSession(testRepo, h))
	got, err := r.OpenSnapshot(nil, must(base64.StdEncoding.DecodeString(goldenSession)))
	if err != nil || string(got) != "golden" {
		t.Errorf("OpenSnapshot = %q, %v", got, err)
	}
}

const goldenText = "orlop-key-1-aaaqeaye-audaocaj-bifqydio-b4ibceqt-cqkrmfyy-denbwha5-dypsaijc-emsckjrh-fausukzm-fuxc6mbr-giztinjw-g44dsor3-hq6t4p7m-zeose"

var golden = map[string]string{
	"writer 0":           "4b9a314dd60824bceb926c1f53b3ad33097f71f883d4d587e8892df6e356ee5d",
	"name 0":             "f1d9e17fad48f4dcd59a4224bc70b16c1fa0412816d7245a9424761b1634022d",
	"chunker 0":          "3d01e5ee6da9b0ae7a58b03916bd3e7b45af27fab96028a52a4350af52e26561",
	"boundary 0":         "a884257acb1f40197f0e725f6bd4934a02738f2bcb865cd4a2c5d3e23f9fca0b",
	"session material 0": "86cd38feecf3f783cdf3a44529369dc0c7c2f49e2cd157710b470750818d32b1",
	"index 0":            "e861f6c8efde4171f4fc15d6f78bf5f62707b342841e744fe969f313ea37fd92",
	"session 0":          "8adfc91c69c4b8f8fa780faa1da2a765a3a42e984fa5007a2a6090f985d5e5f2",
	"writer 7":           "bef8114f2fdb4cffc0b5d71612add54dbfd5d4528375fa226d0c79572172098d",
	"name 7":             "dcf3ef9a32dc51198d0eeb4340b991cf3e52fdec40b6bb19c12605c3fe57fb17",
	"chunker 7":          "0934ee7c741615001ead35a164bed9247f7bf6530c86ed668dd407bfc60b0f5a",
	"boundary 7":         "89add5cc61ea111dfbf464faca83a64c025c214daaa6f1f7d81d72e69cd702ad",
	"session material 7": "2764029a5b2e9a21e98d5b37b074f265087cc3b753bad2f7f2b0edb0a877cfbc",
	"index 7":            "79de14bf3d39a62c5e612f154c97cc215f310005707bf3c9cb301dd12ffa60ef",
	"session 7":          "0d42f073c0899272238ecdc99a1e5b9e5c463a36aabf38c5c6f5c07dd3fbba7f",
	"config":             "efa5b4c53e542ae38ceb4f119b17cafaae039bdb8761b8fe9518ef24ae7cd0fa",
	"box 1":              "606162636465666768696a6b6c6d6e6f02337909b5303048b93a128a169a17ece5455ed45837",
	"snapshot 1":         "606162636465666768696a6b6c6d6e6f8017ebdb4ef5081e76eaae0332bd98b1b2aab140655d",
	"directory 1":        "01606162636465666768696a6b6c6d6e6f1106d5d8dfc67ec809f73aba40776b5ba63c9cc8a106",
	"segment 1":          "01606162636465666768696a6b6c6d6e6f4eb09d83f1b425e6529b36313a990bd6e304d24edd03",
	"config 1":           "01606162636465666768696a6b6c6d6e6f23c40896613ce2e0fe1c9b2ab3abb9b0ab3583f2fef5",
	"box 2":              "606162636465666768696a6b6c6d6e6f8599052dd6f6d60ef46fef5fb5e1dbd07b02820a053d",
	"snapshot 2":         "606162636465666768696a6b6c6d6e6f16887bc59fe940219223a482bdb8e193bc43ac1f505e",
	"directory 2":        "02606162636465666768696a6b6c6d6e6f9969ff7f8b5c523ecf6bc05e53851776385b3a16c700",
	"segment 2":          "02606162636465666768696a6b6c6d6e6fd1ceb7067d3fb16c5cc26fa5d026f3feaa643a5564c0",
	"config 2":           "02606162636465666768696a6b6c6d6e6f85fc6a7ef0071cb044cfcd275f4ec7138f38f9f2eb47",
	"slot password": "6f726c6f70004b3101020000004000000002808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d" +
		"9e9f61f2a2de30671440e0005ed347aba8ba163e83dbb9024ecb0e198ee29628f39f01606162636465666768696a6b6c" +
		"6d6e6f049f0897339134fa61f81225a9ce3e6616d26ca2cbd6298a33a000f256462dc7e7633d1867a650188eb96e0b5d" +
		"5df42dc6866d022f3bc465569e11dd2014fe6601d6349d2f3b0541743348cdeeb81bce94770d5f8b7602161f7debd4fd" +
		"1de91849d121c811924c7680b6d1aa23ee9812d071bae9d21181",
	"slot text": "6f726c6f70004b3102000000000000000000808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d" +
		"9e9f25ce93e5424ecd6d054949154b76d7557ec95453b76e87b4bd7a0cbe790296fb02606162636465666768696a6b6c" +
		"6d6e6fd554c1351b694d0ff3beab8861ec5f99b72bb8d8d956cd09b325dc8067bd16cafeb0e673280946acebf7b2a7d1" +
		"36dc981ccafa125a36a6f622f74177c4c7031cc462bbf970fbaa264e9cc058c1e5f8403ad612bee0a07effe2dd4d0b3c" +
		"1da393ca92f302b34896478d5bb304f5ee5ef859966a001e4137",
}

// SHA-256 of the public key; OpenSSL's ML-KEM and X25519 give the same.
const goldenPublic = "a1f324bc0701f1234fbba7b11901023b3644f3bb8c6eb4ee4368d7e859eb6228"

const goldenHeader = "AQcAAAAEBQYAAAAAAAAAAAAAAAAAA+WPxspcgz7fJR0N/I9YHcLwkOg8wuDCX8Y5oSmR27R6Aa6E4iC6iu9z6KmYigMjRRE0" +
	"omovC6QyX6jRVIQXSgSJMzumZkjZFvO7WoU5XX8bB4Cgn4uJ7cXRKWiPweaDiM3zzJDUOIFJKoxhybw3ErEa0bk0kj7tKY0m" +
	"k8a471VK2y5hFkDprIyNcbLqa4QUsBMfAIEbZMhVFb9cPbRbY07i/pn6O2sRUSRNAtnOx/wMvYbRoQNP4vjOthyKg3aTr8B3" +
	"2+g/tvF0cMFlVuumeZ9HYBVg+zxgoFir5mblAlIZWEU9Wz8GQT61cH/bjXhGMRS4q+cCLvRmMOJho3wxb5wv0I4XKms2BlVV" +
	"VFqkss4Sg247YNYVsJGRouz2Bw6VlV/9+MHSit1CbXZ6XLIns2xWYLg3DVht0Umyp5qvQS/RzzPWnfIHhCvDTkHsIgKLP1Hz" +
	"iPQ2MYykaxZrwZtkyAvuaWG0RqaqIHBUm3gn4b0VyslVk9PJ5+sWFW6y/ir6pDcMcG5/FPeFH1gukh7G3JqARptpLexzWhAp" +
	"+pT4AfrMCBQYwQjj/5IXeVcMNRMaa6rqWaIbqxSkMkwCDBptO/yJiMI8QHVXz/GwDuKLPABPJjmhGGkUx1m9PMyhmeQEtRwJ" +
	"GQVs6I3XseLcrmKgrN8X34E6TB6qIMRII4MSpwlFNNgihsaZ+VATFmLrkfdEx3cxGC4s4sijRLgePMYKsEbj38HuFBLmX6v4" +
	"56k05G9wfppeAXTla8+ZjFG0oXY0RBFOUhh2jbvaYfe/cNqE0FZbk2BX4gYIg2epT0+5iE+mBY867bxEZXsLJq3Gz7Z10Bqw" +
	"u4hSzsdsWqHlP1IMznM0Vrj0ezPkI68nT4KStUPCI6vGNoCwQIWyEg7m9Y1rJLkKCG0eMvocpftvZBiClgv179lVw6E0nva6" +
	"hlqJZmPkOgEloB2RNAkWfm7Ci6duPWFh7NchlQ5vZ74rX/5C5kqUTzkHyjChHlfXbEVP2Ouoh5NJ4niwq9s2elstndC5pfef" +
	"G05WPBtu1x4ES9qqVFNOrEGtM7nevp02VZdlmn02afywbdDlNfuwjUoh/Q1Xg/eiGcolYr/5cHQsa9fh2mZzn/z44f4xmLVu" +
	"f1ZsCV9OeEfDZubWSWRaiqd/LC2N9h7/+BS7ndeiqx9oFuKFnQXYg8HVgBZ00YEExyI8mghVQfV5coYW62U7sRRkOmlvJvlV" +
	"VCF/wri93j5o/AypcQhvB6Iy5DAfYWKUDM2HSWL1CvzjLVteoGwHaN3dkyZrkjwVUOIvTgbsy4EsWP6tTMt8CAfh3qa32pxo" +
	"0s8YJqIMkVxku1UmK3j3NxjD9rCwDOVszC3Skg9EgVuqvd3AyDtdmyVOICHsTIRv01qYxzYaEkzBOKOMBO674vTxS9cwOD4v" +
	"uNKp7pGU+3d+80Uj4ZdYkK7x4pOGY5X9nxAJURQ5ZvXKHAOZEzA6sS6XJGXuKIcQhY4qk8xSgQflmSuFXg=="

const goldenSession = "fjkqwlPDfFteHMyRo5FleXC5zBnPKqxzRDiPke09b8mWCyo1zYo="
